"""How the tensors of an exported model differ from the trained one's, read one at a time from both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tuneloop.exports.tensors import LowRank, Tensors, TrainedWeights

SAMPLED = 256
"""Rows of a weight that are sought in the other one."""
NEAR = 0.9
"""Cosine from which on two rows are the same but for rounding; of unrelated rows of 64 numbers it is below 0.6."""


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor of both models. `difference` is the size (root of the sum of squares) of what lies between them, over
    the trained one's; infinite where the shapes differ, or the exported one has what is no number."""

    name: str
    trained_shape: tuple[int, ...]
    shape: tuple[int, ...]
    finite: bool
    difference: float
    lean: float
    """How much of the trained tensor itself is in the difference: -0.1 where the exported one is a tenth smaller."""
    factor: float | None
    """How many times the adapter's sum is in what was added to the base; None where the adapter adds nothing here."""
    spread: float
    """Standard error of `factor`: what lies beside the adapter's sum may lean to it by chance."""


@dataclass(frozen=True, slots=True, eq=False)
class TensorComparison:
    """All tensors of both, and the names of those that only the trained model has."""

    tensors: tuple[TensorDifference, ...]
    missing: tuple[str, ...]
    trained: Tensors
    exported: Tensors
    deltas: Mapping[str, LowRank]

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """The tensor as it was trained, and as it was exported."""
        base, low = self.trained[name](), self.deltas.get(name)
        return (base if low is None else base + low.delta()), self.exported[name]()


def compare_tensors(source: TrainedWeights, exported: Tensors) -> TensorComparison:
    """Hold the exported tensors against the base's with the adapter's sums.

    What only the export has is no matter: a language head, say, that the trained model ties to its embeddings.
    """
    trained = source.base()
    absent = sorted(name for name in trained if name not in exported and not name.startswith("lm_head."))
    tensors = tuple(
        _compared(name, read(), exported[name](), source.deltas.get(name))
        for name, read in trained.items()
        if name in exported
    )
    # Names of another kind altogether (an old checkpoint's, say) tell nothing.
    missing = tuple(absent) if len(tensors) > len(absent) else ()
    return TensorComparison(tensors, missing, trained, exported, source.deltas)


def _compared(name: str, base: Tensor, exported: Tensor, low: LowRank | None) -> TensorDifference:
    shapes = tuple(base.shape), tuple(exported.shape)
    if shapes[0] != shapes[1] or not bool(exported.isfinite().all()):
        return TensorDifference(name, *shapes, bool(exported.isfinite().all()), float("inf"), 0.0, None, 0.0)
    added = exported - base
    delta = None if low is None else low.delta()
    factor, spread = (None, 0.0) if delta is None else _factor(added, delta)
    trained, rest = (base, added) if delta is None else (base + delta, added - delta)
    size = float(trained.norm()) or 1.0
    lean = float((rest * trained).sum()) / size**2
    return TensorDifference(name, *shapes, True, float(rest.norm()) / size, lean, factor, spread)


def _factor(added: Tensor, delta: Tensor) -> tuple[float | None, float]:
    """How many times `delta` is in `added` (least squares), and the standard error of that; None of a delta of zeros.

    >>> delta = torch.tensor([[1.0, 2.0]])
    >>> _factor(2 * delta, delta)
    (2.0, 0.0)
    """
    square = float((delta * delta).sum())
    if square == 0.0:
        return None, 0.0
    factor = float((added * delta).sum()) / square
    rest = added - factor * delta
    return factor, float((rest * delta).norm()) / square


def is_transposed(trained: Tensor, exported: Tensor) -> bool:
    """Whether a square weight is much nearer to the trained one's transpose than to itself.

    >>> weight = torch.arange(9.0).reshape(3, 3)
    >>> is_transposed(weight, weight.T), is_transposed(weight, weight)
    (True, False)
    """
    if trained.ndim != 2 or trained.shape[0] != trained.shape[1]:
        return False
    return float((exported - trained.T).norm()) < 0.3 * float((exported - trained).norm())


def is_permuted(trained: Tensor, exported: Tensor) -> bool:
    """Whether the rows of a weight are the trained one's, and not all in their places.

    >>> weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    >>> is_permuted(weight, weight.flip(0)), is_permuted(weight, weight), is_permuted(weight, -weight)
    (True, False, False)
    """
    if trained.ndim != 2 or trained.shape != exported.shape:
        return False
    places = torch.linspace(0, len(exported) - 1, min(len(exported), SAMPLED)).long()
    rows = torch.nn.functional.normalize(exported[places], dim=-1)
    cosine, nearest = (rows @ torch.nn.functional.normalize(trained, dim=-1).T).max(-1)
    return bool((cosine > NEAR).float().mean() > NEAR and (nearest != places).any())
