"""What of an adapter's sum outlives the rounding to a ggml type.

A base that was in few bits before lies on the steps of its type. What training adds is small beside them, so rounding
to such a type again finds the same steps, and takes back most of what was added; of any other base it takes back
nothing on average. Weights that would lose it are stored in Q8_0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tuneloop.gguf.quantize import quantized
from tuneloop.gguf.weights import ShardedWeights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FINER = "Q8_0"
"""The type of weights that others would take back to the base's; it has blocks of 32, as those of few bits have."""
FEW_BITS = frozenset({"Q4_0", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K"})
SAMPLED = 256
"""Rows of a weight that are looked at."""
TOLERANCE, CERTAIN = 0.2, 4.0
"""How far the share that is left may be from 1, and how many standard errors more, before it is no chance."""


def share_left(base: NDArray[np.float32], merged: NDArray[np.float32], kind: str) -> tuple[float, float]:
    """How many times what was added to a base [rows, columns] is in the merged weights once they are rounded to a type
    (least squares), and the standard error of that; (1, 0) where nothing was added."""
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    added = (merged - base).astype(np.float64)
    square = float((added * added).sum())
    if square == 0.0:
        return 1.0, 0.0
    error = dequantize(quantized(merged, kind), GGMLQuantizationType[kind]).astype(np.float64) - merged
    return 1.0 + float((error * added).sum()) / square, float(np.linalg.norm(error * added)) / square


def lost_in(base: ShardedWeights, merged: ShardedWeights, types: Iterable[tuple[str, str]]) -> list[str]:
    """Of (name, ggml type) the names of those tensors whose rounding takes back, or doubles, what was added to them.

    Raises TL-MACHINE-EXTRA without llama.cpp's library."""
    lost = []
    for name, kind in types:
        if kind in FEW_BITS and base.shapes.get(name) == merged.shapes[name]:
            share, error = share_left(base.first_rows(name, SAMPLED), merged.first_rows(name, SAMPLED), kind)
            if abs(share - 1) > TOLERANCE + CERTAIN * error:
                lost.append(name)
    return lost
