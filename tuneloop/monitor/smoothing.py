"""An exponential mean of the loss."""

from __future__ import annotations

from dataclasses import dataclass

WINDOW = 20
"""About so many of the last values count."""


@dataclass(slots=True)
class Smooth:
    """An exponential mean without a bias to the start: of one value it is that value.

    >>> mean = Smooth()
    >>> [round(mean.add(loss), 3) for loss in (2.0, 1.0, 1.0)]
    [2.0, 1.475, 1.301]
    """

    total: float = 0.0
    weight: float = 0.0

    def add(self, loss: float) -> float:
        """Count one more loss; the mean with it."""
        share = 2 / (WINDOW + 1)
        self.total += share * (loss - self.total)
        self.weight += share * (1 - self.weight)
        return self.total / self.weight
