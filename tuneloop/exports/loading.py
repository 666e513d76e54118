"""How an exported folder is loaded: commands and Python for each program that reads its target."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneloop.base.language import t
from tuneloop.base.optional import quoted
from tuneloop.exports.ollama import ollama_name
from tuneloop.hub.resolve import on_hub
from tuneloop.methods import adapters
from tuneloop.model.head import CAUSAL, Head
from tuneloop.recipe.schema import Recipe
from tuneloop.training import adapter_card

USUAL_RANK = 16
"""The largest rank that vLLM takes where --max-lora-rank says nothing."""


@dataclass(frozen=True, slots=True)
class Exportation:
    """What the words on loading an export need to know: its target, its folder, and what it was made from."""

    run: str
    target: str
    folder: Path | None
    recipe: Recipe
    base: str
    """What the base model is called elsewhere."""
    python: str
    """Python that loads a whole model's folder."""
    head: Head = CAUSAL
    """Only a model that writes is served by vLLM; others name labels or give scores."""
    composed: bool = False
    """Adapters beside the run's own are in it: the run alone is another model."""

    @property
    def gguf(self) -> str:
        """The name of the GGUF file in the folder."""
        files = sorted(self.folder.glob("*.gguf")) if self.folder else []
        return files[0].name if files else "MODEL.gguf"

    @property
    def has_modelfile(self) -> bool:
        return self.folder is not None and (self.folder / "Modelfile").is_file()

    @property
    def has_template(self) -> bool:
        """Whether a chat template lies beside the adapter, to be used in place of the base's."""
        return self.folder is not None and (self.folder / "chat_template.jinja").is_file()


Section = tuple[Callable[[], str], str, Callable[[Exportation], str]]
"""A sentence, the language of its code (python, bash), and the code; "" where there is none."""


def _ask(port: int, model: str) -> str:
    body = (
        f'{{"model": "{model}", "temperature": 0, "messages": [{{"role": "user", "content": "{t("Who are you?")}"}}]}}'
    )
    remark = t("# in another terminal:")
    return (
        f"{remark}\ncurl http://localhost:{port}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'\n"
    )


def _vllm(one: Exportation) -> str:
    if one.head.answers != "text":
        return ""
    name = quoted(one.recipe.name)
    return f"vllm serve . --served-model-name {name}\n" + _ask(8000, one.recipe.name)


def _vllm_adapter(one: Exportation) -> str:
    if one.head.answers != "text":
        return ""
    rank = _rank(one.folder)
    more = f" --max-lora-rank {rank}" if rank > USUAL_RANK else ""
    modules = quoted(f"{one.recipe.name}=.")
    serve = f"vllm serve {quoted(one.base)} --enable-lora --lora-modules {modules}{more}\n"
    return serve + _ask(8000, one.recipe.name)


def _rank(folder: Path | None) -> int:
    """The largest rank of an adapter's modules, 0 where there is no adapter, as vLLM counts: 8, 16, 32, 64, …"""
    if folder is None or not (folder / "adapter_config.json").is_file():
        return 0
    config = adapters.read_config(folder)
    largest = max([int(config.get("r") or 0), *(int(rank) for rank in (config.get("rank_pattern") or {}).values())])
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= largest), largest)


def _ollama(one: Exportation) -> str:
    if not one.has_modelfile:
        return ""
    name = ollama_name(one.recipe.name)
    return f"ollama create {name} -f Modelfile\nollama run {name}\n"


def _llama_server(one: Exportation) -> str:
    serve = f"llama-server --jinja -m {quoted(one.gguf)} --port 8080\n"
    return serve + _ask(8080, one.recipe.name)


def _llama_server_adapter(one: Exportation) -> str:
    template = " --chat-template-file chat_template.jinja" if one.has_template else ""
    serve = f"llama-server --jinja -m BASE.gguf --lora {quoted(one.gguf)}{template} --port 8080\n"
    return serve + _ask(8080, one.recipe.name)


def _gguf_python(one: Exportation) -> str:
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'folder, file = ".", "{one.gguf}"\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file)\n" + _question()
    )


def _peft(one: Exportation) -> str:
    """The base is named in it: the adapter's own config has its name, which is no folder on this machine."""
    bits, given = adapter_card.bits(one.recipe)
    more = ", BitsAndBytesConfig" if bits else ""
    where = t("the base model: its folder, or its name on a hub")
    return (
        "from peft import PeftModel\n"
        f"from transformers import AutoModelForCausalLM, AutoTokenizer{more}\n\n"
        f'base = "{one.base}"  # {where}\n'
        'folder = "."\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        f"{bits}model = AutoModelForCausalLM.from_pretrained(base{given})\n"
        "model = PeftModel.from_pretrained(model, folder)\n" + _question()
    )


def _question() -> str:
    """Python that asks `model`, and prints the answer."""
    return (
        'chat = [{"role": "user", "content": "' + t("Who are you?") + '"}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True\n)\n'
        "answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)\n"
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))\n'
    )


def _export(one: Exportation) -> str:
    """The file that Ollama and llama.cpp load, out of the same run."""
    if one.target != "merged" or one.head.answers != "text" or one.composed:
        return ""
    return f"tuneloop export {quoted(one.run)} --as gguf-q4_k_m --to {quoted(one.run + '-q4_k_m')}\n"


def _transformers(one: Exportation) -> str:
    return one.python


def _tuneloop(one: Exportation) -> str:
    return "tuneloop chat .\ntuneloop serve .\n"


_FOLDER: Sequence[Section] = (
    (lambda: t("With transformers, in this folder:"), "python", _transformers),
    (lambda: t("With vLLM, in this folder:"), "bash", _vllm),
    (lambda: t("With Ollama or llama.cpp, which load another form of the same run:"), "bash", _export),
    (lambda: t("With tuneloop, in this folder:"), "bash", _tuneloop),
)
_GGUF: Sequence[Section] = (
    (lambda: t("With Ollama, in this folder:"), "bash", _ollama),
    (lambda: t("With llama.cpp, in this folder (its server runs the chat template that is in the file):"), "bash",
     _llama_server),
    (lambda: t("With transformers, which unpacks the weights (needs the package gguf):"), "python", _gguf_python),
)  # fmt: skip
LOADING: dict[str, Sequence[Section]] = {
    "adapter": (
        (lambda: t("With vLLM, in this folder, on a machine that has the base model:"), "bash", _vllm_adapter),
        (lambda: t("With peft, in this folder, on a machine that has the base model:"), "python", _peft),
    ),
    "gguf": _GGUF,
    "gguf-lora": (
        (lambda: t("With llama.cpp, BASE.gguf being the base model:"), "bash", _llama_server_adapter),
        (lambda: t("With Ollama, once FROM in the Modelfile names a GGUF of the base model:"), "bash", _ollama),
    ),
}  # fmt: skip
"""Target -> its sections; `gguf` for all whole models in GGUF; all others are folders of transformers."""


def loading(one: Exportation) -> str:
    """Markdown: of each program that reads the export a sentence and a block of code."""
    kind = "gguf" if re.match(r"gguf-(?!lora)", one.target) else one.target
    parts = []
    if kind in ("adapter", "gguf-lora") and not on_hub(one.base):
        words = t(
            "{base} is what tuneloop calls the base model. Where a program asks for it, name its folder, or its name "
            "on a hub; the adapter fits the very weights that it was trained on.",
            base=one.base,
        )
        parts.append(words + "\n")
    for sentence, language, code in LOADING.get(kind, _FOLDER):
        if text := code(one):
            parts.append(f"{sentence()}\n\n```{language}\n{text}```\n")
    if kind == "gguf" and not one.has_modelfile:
        parts.append(
            t("There is no Modelfile for Ollama: its templates cannot write this model's chat template.") + "\n"
        )
    return "\n".join(parts)
