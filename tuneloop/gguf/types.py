"""Which type each tensor of a GGUF file gets: as llama.cpp's own quantiser decides it (its src/llama-quant.cpp).

What matters most keeps more bits: the output, a third of the layers' values and down projections. A row that does not
divide into a type's blocks gets the nearest type whose blocks are smaller. Names of types are ggml's ("Q4_K").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileType:
    """A kind of GGUF file: the number that llama.cpp has for it, and what most of its tensors are stored as."""

    number: int
    most: str


KINDS = {
    "f16": FileType(1, "F16"),
    "bf16": FileType(32, "BF16"),
    "q8_0": FileType(7, "Q8_0"),
    "q4_0": FileType(2, "Q4_0"),
    "q4_k_m": FileType(15, "Q4_K"),
    "q5_k_m": FileType(17, "Q5_K"),
    "q6_k": FileType(18, "Q6_K"),
}
"""Kinds of GGUF files that are written -> their file type."""
_SMALLER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""A type of blocks of 256 -> the one of blocks of 32 that takes its place in narrower rows."""
_BLOCK, _SMALL_BLOCK = 256, 32


def tensor_types(shapes: Mapping[str, tuple[int, ...]], kind: str, *, wide: bool = False) -> dict[str, str]:
    """The ggml type of each tensor in a file of `kind`, by its name in GGUF; shapes are rows first.

    Layers count in the order of `shapes`. `wide` is a model of 70B's build, where eight heads share a value.

    >>> tensor_types({"token_embd.weight": (9, 256), "output_norm.weight": (256,)}, "q4_k_m")
    {'token_embd.weight': 'Q6_K', 'output_norm.weight': 'F32'}
    """
    most, types = KINDS[kind].most, {}
    tied = "output.weight" not in shapes
    layers = {part: [n for n in shapes if n.endswith(f".{part}.weight")] for part in ("attn_v", "ffn_down")}
    higher = {name for names in layers.values() for i, name in enumerate(names) if more_bits(i, len(names))}
    for name, shape in shapes.items():
        if len(shape) < 2 or name.endswith("_norm.weight"):
            types[name] = "F32"
        elif most in ("F16", "BF16"):
            types[name] = most
        else:
            chosen = most
            if name == "output.weight" or (tied and name == "token_embd.weight"):
                narrow = shape[-1] % (_BLOCK if most.endswith("K") else _SMALL_BLOCK)
                chosen = "Q8_0" if narrow or most == "Q8_0" else "Q6_K"
            elif kind in ("q4_k_m", "q5_k_m") and name in higher:
                chosen = "Q6_K"
            elif wide and chosen == "Q4_K" and name.endswith(".attn_v.weight"):
                chosen = "Q5_K"
            types[name] = fitting(chosen, shape[-1])
    return types


def more_bits(layer: int, layers: int) -> bool:
    """Whether a layer is one of those that K_M files store with more bits: the first and last eighth, a third between.

    >>> [n for n in range(18) if more_bits(n, 18)]
    [0, 1, 4, 7, 10, 13, 15, 16, 17]
    """
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def fitting(kind: str, columns: int) -> str:
    """The type itself where a row divides into its blocks, else the one that takes its place.

    On rows of Q8_0 or Q4_0 that do not divide by 32 llama.cpp's quantiser gives up; its converter takes F16, as here.

    >>> fitting("Q4_K", 512), fitting("Q4_K", 576), fitting("Q4_K", 40)
    ('Q4_K', 'Q5_0', 'F16')
    """
    if kind in _SMALLER and columns % _BLOCK:
        kind = _SMALLER[kind]
    return "F16" if columns % _SMALL_BLOCK else kind
