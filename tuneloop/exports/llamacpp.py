"""Exports for llama.cpp and Ollama: the merged model as a GGUF of one type, or the adapter alone as one."""

from __future__ import annotations

import shutil
from pathlib import Path

from tuneloop.base.errors import TuneloopError
from tuneloop.base.language import listed, t
from tuneloop.base.optional import quoted
from tuneloop.data.tokens.templates import render, stop_ids
from tuneloop.data.version.dataset import open_dataset
from tuneloop.exports.composition import Composition
from tuneloop.exports.merge import generation_config
from tuneloop.exports.reference import Reference
from tuneloop.gguf.library import library
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.runs.run import Run

MODELFILE = "Modelfile"
TEMPLATE = "chat_template.jinja"
"""The chat template beside an adapter, as `llama-server --chat-template-file` takes it."""
BASE = "BASE.gguf"
"""What a Modelfile with an adapter calls the model below it: only whoever serves it knows which file that is."""


def require_writable(parts: Composition) -> None:
    """Raise what keeps the run's model out of a GGUF file, before anything is loaded.

    TL-MACHINE-EXTRA where llama.cpp's library is not installed, TL-MODEL-GGUF-WRITE for an architecture that has no
    place in such a file, TL-MODEL-GGUF-TOKENIZER for such a tokenizer.
    """
    from tuneloop.gguf.tokenizer_facts import tokenizer_facts
    from tuneloop.gguf.write import architecture_facts, config_of, refusing

    library()
    with refusing(parts.weights):
        architecture_facts(*config_of(parts.weights))
    tokenizer_facts(parts.weights)


def base_refusal(parts: Composition) -> str:
    """Why a GGUF of the base would not open and end a dialogue as the run's chat template does, "" where it does.

    The template itself goes along with the adapter; what opens each prompt and ends an answer the base's file says.
    """
    from tuneloop.gguf.tokenizer_facts import ENDS_BY_TEXT, tokenizer_facts

    facts, tokenizer = tokenizer_facts(parts.weights), load_tokenizer(parts.adapters[0])
    bos = facts["tokenizer.ggml.tokens"][facts["tokenizer.ggml.bos_token_id"]]
    prompt = render(tokenizer, [{"role": "user", "content": "?"}], prompt=True)
    if facts["tokenizer.ggml.add_bos_token"] and not prompt.startswith(bos):
        return t(
            "a GGUF of its base begins each prompt with {token}, and the run's chat template does not; take a whole "
            "model, whose file says so: gguf-q8_0, gguf-q4_k_m",
            token=bos,
        )
    named = {facts.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    ends = {number: str(tokenizer.convert_ids_to_tokens(number)) for number in sorted(stop_ids(tokenizer))}
    lost = [token for number, token in ends.items() if number not in named and token not in ENDS_BY_TEXT]
    if lost or not ends.keys() & named:
        return t(
            "programs that read a GGUF of its base do not end an answer at {tokens}, as the run's chat template does; "
            "take a whole model, whose file names it: gguf-q8_0, gguf-q4_k_m",
            tokens=listed(lost or list(ends.values())),
        )
    return ""


def gguf_name(parts: Composition, kind: str) -> str:
    """The name of the GGUF file in its folder, as llama.cpp's community names them: name-TYPE.gguf."""
    return f"{parts.name}-{kind.upper()}.gguf"


def write_model(reference: Reference, merged: Path, folder: Path, kind: str) -> list[str]:
    """Write the merged model's folder as one GGUF file of a type, with a Modelfile for Ollama; returns notes."""
    from tuneloop.gguf.write import write_gguf

    folder.mkdir()
    name = gguf_name(reference.parts, kind)
    parts = reference.parts
    finer = write_gguf(merged, folder / name, kind, parts.weights if parts.adapters else None)
    generation_config(reference, folder)
    notes = _modelfile(parts, merged, folder, name)
    if finer:
        notes.append(
            t(
                "The base was in few bits before: {n} weights are stored in q8_0, for {kind} would round away "
                "what training has added to them.",
                n=len(finer),
                kind=kind,
            )
        )
    return notes


def write_adapter(reference: Reference, folder: Path, scratch: Path) -> list[str]:
    """Write the run's adapter as a GGUF that goes onto a GGUF of its base, with a Modelfile; returns notes.

    The run's chat template lies beside it: the base may bring another one, or none, and a program would then take one
    that it knows.
    """
    from tuneloop.gguf.lora import write_lora
    from tuneloop.gguf.tokenizer_facts import with_bos

    parts, (adapter,) = reference.parts, reference.parts.adapters
    folder.mkdir()
    name = gguf_name(parts, "lora")
    write_lora(adapter, parts.weights, folder / name)
    template = with_bos(reference.tokenizer.get_chat_template(), reference.tokenizer.bos_token)
    (folder / TEMPLATE).write_text(template, encoding="utf-8", newline="\n")
    generation_config(reference, folder)
    model = scratch / "prompts"  # what a Modelfile is made from: the run's tokenizer with the base's config
    reference.tokenizer.save_pretrained(model)
    shutil.copyfile(parts.weights / "config.json", model / "config.json")
    shutil.copyfile(folder / "generation_config.json", model / "generation_config.json")
    notes = _modelfile(parts, model, folder, BASE, adapter=name)
    note = t("Its Modelfile asks for {name}: a GGUF of {base}, to be put beside it.", name=BASE, base=parts.base_name)
    return notes or [note]


def _modelfile(parts: Composition, model: Path, folder: Path, name: str, adapter: str | None = None) -> list[str]:
    """A Modelfile beside the GGUF `name`; where Ollama's templates cannot say the model's own, why, as a note."""
    from tuneloop.exports.ollama import modelfile

    try:
        text = modelfile(model, name, adapter=adapter, system=parts.recipe.prepare.system, longest=_longest(parts))
    except TuneloopError as error:
        more = f" --lora {quoted(adapter)} --chat-template-file {TEMPLATE}" if adapter else ""
        serve = f"llama-server --jinja -m {quoted(name)}{more}"
        return [t("{reason} Serve it with: {command}", reason=f"{error.code}  {error.what}", command=serve)]
    (folder / MODELFILE).write_text(text, encoding="utf-8", newline="\n")
    return []


def _longest(parts: Composition) -> int | None:
    """Tokens of the longest row that was trained on; None where the dataset is gone."""
    folder = Run(parts.run).dataset()
    try:
        return None if folder is None else int(open_dataset(folder).manifest["tokens"]["longest"])
    except (TuneloopError, KeyError, TypeError, ValueError):
        return None
