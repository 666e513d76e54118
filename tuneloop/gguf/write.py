"""A model folder as a GGUF file: facts of build and tokenizer, tensors in the types that llama.cpp gives them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.base.errors import ModelError
from tuneloop.base.language import t
from tuneloop.gguf.architectures import ARCHITECTURES, Architecture, Facts, architecture_of, head_size, rope_divisors
from tuneloop.gguf.output import PackedTensor, write_file
from tuneloop.gguf.quantize import quantized
from tuneloop.gguf.survival import FINER, lost_in
from tuneloop.gguf.types import KINDS, tensor_types
from tuneloop.gguf.weights import ShardedWeights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROPE = "rope_freqs.weight"
"""llama.cpp's tensor of Llama 3's scaled rotary positions, which no checkpoint has."""


def write_gguf(folder: Path, path: Path, kind: str, base: Path | None = None) -> list[str]:
    """Write the model in `folder` to `path`, over what was there; `kind` is one of KINDS. Returns the tensors that are
    stored in a finer type: those that would lose what was added to the model in `base` (`survival.py`).

    Memory holds one piece of one tensor at a time, whatever the model's size. Raises TL-MODEL-GGUF-WRITE for what a
    GGUF file cannot hold, TL-MODEL-GGUF-TOKENIZER for such a tokenizer, TL-MACHINE-DISK, TL-MACHINE-FOLDER and
    TL-MACHINE-EXTRA; then `path` is as it was.
    """
    from tuneloop.gguf.tokenizer_facts import tokenizer_facts

    with refusing(folder):
        config, architecture = config_of(folder)
        facts = architecture_facts(config, architecture)
        weights = ShardedWeights(folder)
        names = gguf_names(weights, config, ARCHITECTURES[architecture])
    words = tokenizer_facts(folder)
    with refusing(folder):
        _require_rows(weights, words)
        facts = general_facts(folder, facts, weights, KINDS[kind].number) | facts | words
        shapes = {target: weights.shapes[name] for target, (_, name) in names.items()}
        types = tensor_types(shapes, kind, wide=_is_wide(facts))
        lost = list[str]()
        if base is not None:
            pairs = ((name, types[target]) for target, (_, name) in names.items())
            lost = lost_in(ShardedWeights(base), weights, pairs)
        types |= {target: FINER for target, (_, name) in names.items() if name in lost}
        write_file(path, facts, _tensors(weights, config, facts, names, types))
    return lost


@contextmanager
def refusing(folder: Path) -> Iterator[None]:
    """What cannot be held by a GGUF file, told as TL-MODEL-GGUF-WRITE about `folder`."""
    try:
        yield
    except ValueError as error:
        raise ModelError("TL-MODEL-GGUF-WRITE", where=str(folder), error=str(error)) from error


def config_of(folder: Path) -> tuple[Any, str]:
    """A folder's config as transformers reads it, and GGUF's name of its architecture. Raises ValueError."""
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error
    model = (config.architectures or ["?"])[0]
    architecture = architecture_of(model)
    if architecture is None:
        known = ", ".join(one.model for one in ARCHITECTURES.values())
        raise ValueError(t("a model of the class {model} is not written; these are: {known}", model=model, known=known))
    return config, architecture


def architecture_facts(config: Any, architecture: str) -> Facts:
    """What a GGUF file says of a model's build. Raises ValueError for a build that it has no place for."""
    return {"general.architecture": architecture} | ARCHITECTURES[architecture].facts(config)


def general_facts(folder: Path, facts: Facts, weights: ShardedWeights, number: int) -> Facts:
    """Name, licence and size of a model, and the number of its file type."""
    from gguf import size_label
    from gguf.constants import GGML_QUANT_VERSION

    note = {}
    with suppress(OSError, ValueError):
        note = json.loads((folder / "tuneloop.json").read_text(encoding="utf-8"))
    note = note if isinstance(note, dict) else {}
    licence = str(note.get("licence") or "")
    return {
        "general.architecture": facts["general.architecture"],
        "general.type": "model",
        "general.name": str(note.get("name") or folder.name),
        "general.size_label": size_label(sum(math.prod(s) for s in weights.shapes.values()), 0, 0, 0),
        **({"general.license": licence} if licence else {}),
        "general.file_type": number,
        "general.quantization_version": GGML_QUANT_VERSION,
    }


def gguf_names(weights: ShardedWeights, config: Any, architecture: Architecture) -> dict[str, tuple[str, str]]:
    """Tensor in GGUF -> (its part name, its name in the folder), first layer first, as llama.cpp sorts them.

    A head that is tied to the embedding is not written. Raises ValueError for a tensor that is missing, and for one
    that GGUF has no place for.
    """
    names, ignored = {}, {"lm_head.weight"} if config.tie_word_embeddings else set()
    for part, module in architecture.names.items():
        stem, suffix = (part.removesuffix(".bias"), "bias") if part.endswith(".bias") else (part, "weight")
        layers = range(0 if module.startswith("model.") or module == "lm_head" else config.num_hidden_layers)
        for ours, theirs in [(f"blk.{n}.", f"model.layers.{n}.") for n in layers] or [("", "")]:
            if (name := f"{theirs}{module}.{suffix}") not in ignored:
                names[f"{ours}{stem}.{suffix}"] = (part, name)
    expected = {name for _, name in names.values()}
    if more := sorted(weights.shapes.keys() - expected - ignored):
        raise ValueError(t("its tensor {name} has no place in a GGUF file", name=more[0]))
    if missing := sorted(expected - weights.shapes.keys()):
        raise ValueError(t("its tensor {name} is missing", name=missing[0]))
    return dict(sorted(names.items(), key=lambda pair: layer_order(pair[0])))


def layer_order(name: str) -> tuple[int, str]:
    """What llama.cpp sorts tensors by: what belongs to no layer, then layer by layer.

    >>> sorted(["blk.10.attn_q.weight", "output.weight", "blk.2.attn_q.weight"], key=layer_order)
    ['output.weight', 'blk.2.attn_q.weight', 'blk.10.attn_q.weight']
    """
    return (int(name.split(".")[1]) if name.startswith("blk.") else -1), name


def _require_rows(weights: ShardedWeights, words: Facts) -> None:
    tokens, rows = len(words["tokenizer.ggml.tokens"]), weights.shapes["model.embed_tokens.weight"][0]
    if tokens != rows:
        raise ValueError(t("its embedding has {rows} rows, its tokenizer {tokens} tokens", rows=rows, tokens=tokens))


def _tensors(
    weights: ShardedWeights, config: Any, facts: Facts, names: dict[str, tuple[str, str]], types: dict[str, str]
) -> dict[str, PackedTensor]:
    """The tensors to be written, packed when they are asked for."""
    architecture, head = ARCHITECTURES[facts["general.architecture"]], head_size(facts)
    shapes = {target: weights.shapes[name] for target, (_, name) in names.items()}

    def packed(target: str) -> Iterator[NDArray[np.uint8]]:
        part, name = names[target]
        for piece in weights.pieces(name, head):
            numbers = architecture.stored(part, piece, head)
            try:
                yield quantized(numbers.reshape(len(numbers), -1) if numbers.ndim > 1 else numbers[None], types[target])
            except ValueError as error:
                raise ValueError(t("tensor {name}: {error}", name=name, error=str(error))) from error

    tensors = {n: PackedTensor(shapes[n], types[n], lambda n=n: packed(n)) for n in names}  # type: ignore[misc]
    divisors = rope_divisors(config) if facts["general.architecture"] == "llama" else None
    if divisors is not None:
        rows = quantized(divisors[None], "F32")
        tensors[ROPE] = PackedTensor(divisors.shape, "F32", lambda: [rows])
    return dict(sorted(tensors.items(), key=lambda pair: layer_order(pair[0])))


def _is_wide(facts: Facts) -> bool:
    """Whether llama.cpp takes a model for one of 70B: 80 layers, and for Llama keys that several heads share."""
    kind = facts["general.architecture"]
    shared = facts[f"{kind}.attention.head_count"] != facts[f"{kind}.attention.head_count_kv"]
    return bool(facts[f"{kind}.block_count"] == 80 and (kind == "qwen2" or (kind == "llama" and shared)))
