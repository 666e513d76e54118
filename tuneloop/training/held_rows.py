"""The held-out loss, and what each row has of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.data.batches.examples import Examples

MOST = 2000
"""Rows whose losses are written at each measurement."""


def _none() -> NDArray[np.float64]:
    return np.zeros(0)


@dataclass(frozen=True, slots=True, eq=False)
class HeldLosses:
    """A measurement: the held-out loss is `total` by `weight`, label tokens mostly.

    losses, weights float64 [rows]: the mean of each row over what it counts, and how much that is. A row that was split
    into several samples is one row.
    """

    total: float
    weight: float
    losses: NDArray[np.float64] = field(default_factory=_none)
    weights: NDArray[np.float64] = field(default_factory=_none)

    @staticmethod
    def of(total: float, each: NDArray[np.float64], examples: Examples) -> HeldLosses:
        """`each` float64 [examples] is what the examples lost, `total` their sum as it was added up."""
        row = examples.samples.row[examples.members[:, 0]]
        rows, number = np.unique(row, return_inverse=True)
        weights = np.bincount(number, examples.weights, len(rows)).astype(np.float64)
        losses = np.bincount(number, each, len(rows)) / weights
        return HeldLosses(total, float(examples.weights.sum()), losses, weights)

    @property
    def error(self) -> float | None:
        """The standard error of the weighted mean over rows; None where fewer than two tell it, or one is no number.

        Rows are what was drawn, not tokens: those of one row have much in common.

        >>> HeldLosses(6.0, 3.0, np.array([1.0, 2.0, 3.0]), np.ones(3)).error
        0.577350269...
        """
        n = len(self.losses)
        if n < 2 or not np.isfinite(self.losses).all():
            return None
        mean = float((self.losses * self.weights).sum() / self.weights.sum())
        squares = float(((self.weights * (self.losses - mean)) ** 2).sum())
        return math.sqrt(n / (n - 1) * squares) / float(self.weights.sum())

    def some(self) -> dict[str, Any]:
        """The rows' means and weights for held.jsonl: at most MOST, evenly over all, the same ones every time."""
        n = len(self.losses)
        chosen = np.arange(min(n, MOST)) * n // max(1, min(n, MOST))
        return {
            "losses": [round(x, 6) for x in self.losses[chosen].tolist()],
            "weights": [round(x, 6) for x in self.weights[chosen].tolist()],
        }
