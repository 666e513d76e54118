"""The targets of an export: one visible dict. The command line lists it; `export.py` reads its entries.

Listing them, or refusing a name, takes no library: what makes and proves them is imported when it is called.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tuneloop.base.errors import RunError
from tuneloop.base.language import listed, t
from tuneloop.base.optional import need, quoted

if TYPE_CHECKING:
    from tuneloop.exports.composition import Composition
    from tuneloop.exports.parity import Parity
    from tuneloop.exports.reference import Reference


@dataclass(frozen=True, slots=True)
class ExportInput:
    """What a target is made from. `merged` is the merged model's folder where the target asks for it; `scratch` a
    folder for what is only needed on the way; `dtype` the type of the merged weights."""

    reference: Reference
    merged: Path | None
    scratch: Path
    dtype: str

    @property
    def model(self) -> Path:
        """The merged model's folder."""
        assert self.merged is not None
        return self.merged


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One way to ship a run's model."""

    purpose: Callable[[], str]
    """What it is for, in one line."""
    bits: float | None
    """Bits a weight of the base, as a whole file has it; None where that is the type that was asked for, 0 where none
    of the base's weights is in it."""
    readers: tuple[str, ...]
    """The programs that load it."""
    of_merged: bool
    """It is made out of the merged weights."""
    refusal: Callable[[Composition], str]
    """Why a run's model cannot be exported so, "" where it can; may raise a coded error. Nothing is loaded for it."""
    make: Callable[[ExportInput, Path], Sequence[str]]
    """Writes the new folder, and returns notes for whoever uses it."""
    prove: Callable[[ExportInput, Path], Parity]
    """Reads the folder back and compares it."""
    command: Callable[[Composition, Path], str]
    """A command line that uses the folder."""


def require_known(names: Sequence[str]) -> None:
    """Raise TL-RUN-TARGET for a name that is no target's."""
    for name in names:
        if name not in TARGETS:
            near = difflib.get_close_matches(name.lower(), TARGETS, 3, 0.5) or list(TARGETS)
            reason = t("there is no such target; near it: {names}", names=listed(near))
            raise RunError("TL-RUN-TARGET", where=name, target=name, reason=reason)


def require_possible(parts: Composition, names: Sequence[str]) -> None:
    """Raise TL-RUN-TARGET where a run's model cannot be exported as one of the targets, and what a target's own check
    raises: TL-RUN-UNMERGEABLE, TL-MACHINE-EXTRA."""
    for name in names:
        if TARGETS[name].of_merged:
            _require_mergeable(parts)
        if reason := TARGETS[name].refusal(parts):
            raise RunError("TL-RUN-TARGET", where=str(parts.run), target=name, reason=reason)


def _require_mergeable(parts: Composition) -> None:
    from tuneloop.methods.table import METHODS

    method = METHODS[parts.recipe.train.method]
    if method.adapter and not method.mergeable:
        raise RunError("TL-RUN-UNMERGEABLE", where=str(parts.run), method=parts.recipe.train.method)


def _any_task(parts: Composition) -> str:
    return ""


def _generative(parts: Composition) -> str:
    """Only models that write have a form in which llama.cpp or bitsandbytes serve them."""
    if parts.task.answers != "text":
        return t("it holds models that write, and this one names labels or gives scores; take merged")
    return ""


def _quantisable(parts: Composition) -> str:
    need("bitsandbytes", extra="qlora")
    return _generative(parts)


def _gguf(parts: Composition) -> str:
    from tuneloop.exports import llamacpp

    reason = _generative(parts)
    if not reason:
        llamacpp.require_writable(parts)
    return reason


def _one_adapter(parts: Composition) -> str:
    if len(parts.adapters) != 1:
        many = t("{n} adapters do not go into one; take merged", n=len(parts.adapters))
        return many if parts.adapters else t("training changed the whole model, and there is no adapter; take merged")
    return ""


def _vllm(parts: Composition) -> str:
    from tuneloop.exports.adapter import vllm_refusal
    from tuneloop.model.config import model_config

    if reason := _one_adapter(parts):
        return reason
    return vllm_refusal(parts.adapters[0], str(model_config(parts.weights).model_type))


def _gguf_adapter(parts: Composition) -> str:
    from tuneloop.exports import llamacpp
    from tuneloop.gguf.lora import lora_settings
    from tuneloop.gguf.write import refusing

    _require_mergeable(parts)
    if reason := _one_adapter(parts) or _gguf(parts):
        return reason
    with refusing(parts.adapters[0]):
        lora_settings(parts.adapters[0])
    return llamacpp.base_refusal(parts)


def _path(folder: Path) -> str:
    """A path as a command line takes it: one that begins with a hyphen would be an option."""
    return quoted(f"./{folder}" if str(folder).startswith("-") else str(folder))


def _chat(parts: Composition, folder: Path) -> str:
    return f"tuneloop chat {_path(folder)}"


def _nothing(work: ExportInput, folder: Path) -> list[str]:
    """The flow has merged already."""
    return []


def _make_adapter(work: ExportInput, folder: Path) -> list[str]:
    from tuneloop.exports.adapter import copy_adapter

    copy_adapter(work.reference, folder)
    return _adapter_notes(work.reference.parts)


def _adapter_notes(parts: Composition) -> list[str]:
    notes = []
    if parts.recipe.train.merge:
        notes.append(
            t("It belongs on the weights in {base}, into which adapters were added before this run.", base=parts.base)
        )
    if parts.bits is not None:
        notes.append(
            t(
                "It was trained on weights in {bits}: on weights that are held otherwise it answers a little "
                "differently.",
                bits=parts.bits.bits,
            )
        )
    return notes


def _vllm_command(parts: Composition, folder: Path) -> str:
    from tuneloop.exports.adapter import max_rank
    from tuneloop.methods import adapters

    rank = max_rank(adapters.read_config(folder))
    more = f" --max-lora-rank {rank}" if rank is not None and rank > 16 else ""
    module = quoted(f"{parts.name}={folder}")
    return f"vllm serve {quoted(str(parts.weights))} --enable-lora --lora-modules {module}{more}"


def _prove_model(target: str, work: ExportInput, folder: Path) -> Parity:
    from tuneloop.exports import proof

    return proof.prove_model(work.reference, target, folder, work.dtype)


def _prove_adapter(work: ExportInput, folder: Path) -> Parity:
    from tuneloop.exports import proof

    return proof.prove_adapter(work.reference, "adapter", folder)


def _quantised(bits: Literal["nf4", "int8"], share: float, purpose: Callable[[], str]) -> Target:
    def make(work: ExportInput, folder: Path) -> list[str]:
        from tuneloop.exports.quantised import quantise

        quantise(work.reference, work.model, folder, work.dtype, bits=bits)
        return []

    return Target(
        purpose=purpose,
        bits=share,
        readers=("tuneloop", "transformers", "vLLM"),
        of_merged=True,
        refusal=_quantisable,
        make=make,
        prove=partial(_prove_model, bits),
        command=_chat,
    )


def _make_gguf(kind: str, work: ExportInput, folder: Path) -> list[str]:
    from tuneloop.exports import llamacpp

    return llamacpp.write_model(work.reference, work.model, folder, kind)


def _prove_gguf(target: str, kind: str, work: ExportInput, folder: Path) -> Parity:
    from tuneloop.exports import llamacpp, proof

    return proof.prove_gguf(work.reference, target, folder / llamacpp.gguf_name(work.reference.parts, kind))


def _gguf_command(kind: str, parts: Composition, folder: Path) -> str:
    from tuneloop.exports import llamacpp
    from tuneloop.exports.ollama import ollama_name

    if (folder / llamacpp.MODELFILE).is_file():
        return f"ollama create {quoted(ollama_name(parts.name))} -f {_path(folder / llamacpp.MODELFILE)}"
    return f"llama-server --jinja -m {_path(folder / llamacpp.gguf_name(parts, kind))}"


def _gguf_target(kind: str, bits: float, purpose: Callable[[], str]) -> Target:
    return Target(
        purpose=purpose,
        bits=bits,
        readers=("llama.cpp", "Ollama"),
        of_merged=True,
        refusal=_gguf,
        make=partial(_make_gguf, kind),
        prove=partial(_prove_gguf, f"gguf-{kind}", kind),
        command=partial(_gguf_command, kind),
    )


def _make_lora(work: ExportInput, folder: Path) -> list[str]:
    from tuneloop.exports import llamacpp

    notes = llamacpp.write_adapter(work.reference, folder, work.scratch)
    return [*notes, *_adapter_notes(work.reference.parts)]


def _prove_lora(work: ExportInput, folder: Path) -> Parity:
    from tuneloop.exports import llamacpp, proof
    from tuneloop.gguf.write import write_gguf

    parts, base = work.reference.parts, work.scratch / "base.gguf"
    write_gguf(parts.weights, base, "f16")
    try:
        adapter = folder / llamacpp.gguf_name(parts, "lora")
        return proof.prove_gguf(work.reference, "gguf-lora", base, adapter, folder / llamacpp.TEMPLATE)
    finally:
        base.unlink()


def _lora_command(parts: Composition, folder: Path) -> str:
    from tuneloop.exports import llamacpp

    adapter, template = _path(folder / llamacpp.gguf_name(parts, "lora")), _path(folder / llamacpp.TEMPLATE)
    return f"llama-server --jinja -m BASE.gguf --lora {adapter} --chat-template-file {template}"


TARGETS: dict[str, Target] = {
    "merged": Target(
        purpose=lambda: t("base and adapters in one model folder: trains on, and loads everywhere"),
        bits=None,
        readers=("tuneloop", "transformers", "vLLM", "SGLang"),
        of_merged=True,
        refusal=_any_task,
        make=_nothing,
        prove=partial(_prove_model, "merged"),
        command=_chat,
    ),
    "adapter": Target(
        purpose=lambda: t("the adapter alone: many of them on one base that vLLM has loaded"),
        bits=0.0,
        readers=("vLLM", "PEFT"),
        of_merged=False,
        refusal=_vllm,
        make=_make_adapter,
        prove=_prove_adapter,
        command=_vllm_command,
    ),
    "gguf-f16": _gguf_target("f16", 16.0, lambda: t("unquantised for llama.cpp: what the others are measured by")),
    "gguf-bf16": _gguf_target("bf16", 16.0, lambda: t("the same for weights beyond the range of f16")),
    "gguf-q8_0": _gguf_target("q8_0", 8.5, lambda: t("hardly tells from f16, half its size")),
    "gguf-q4_0": _gguf_target("q4_0", 4.6, lambda: t("the smallest and fastest on a CPU, and the coarsest")),
    "gguf-q4_k_m": _gguf_target("q4_k_m", 4.9, lambda: t("the usual choice: small, and better than q4_0")),
    "gguf-q5_k_m": _gguf_target("q5_k_m", 5.7, lambda: t("between q4_k_m and q6_k")),
    "gguf-q6_k": _gguf_target("q6_k", 6.6, lambda: t("near q8_0, a quarter smaller")),
    "gguf-lora": Target(
        purpose=lambda: t("the adapter alone for llama.cpp (--lora) and Ollama (ADAPTER), on a GGUF of its base"),
        bits=0.0,
        readers=("llama.cpp", "Ollama"),
        of_merged=False,
        refusal=_gguf_adapter,
        make=_make_lora,
        prove=_prove_lora,
        command=_lora_command,
    ),
    "nf4": _quantised("nf4", 4.5, lambda: t("4 bits of bitsandbytes: a quarter of the memory on a graphics card")),
    "int8": _quantised("int8", 8.1, lambda: t("8 bits of bitsandbytes: half the memory on a graphics card")),
}
"""Name of a target -> the target."""
