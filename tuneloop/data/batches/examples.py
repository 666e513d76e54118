"""What an optimizer step counts: single samples, or several that belong together, such as the two answers of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.data.tokens.samples import Sample, Sequences


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """n examples over samples. `columns` are what the objective is told of each sample beside its tokens.

    members int64 [n, k]: the samples of each example, which share a forward pass. columns: name -> array [samples], one
    number a sample (a class, a reference's log-probability). weights float64 [n]: what an example counts for in the
    mean of a step's loss; for language modelling its label tokens.
    """

    samples: Sequences
    members: NDArray[np.int64]
    weights: NDArray[np.float64]
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each example, int32 [n]."""
        lengths: NDArray[np.int32] = self.samples.lengths[self.members].sum(1).astype(np.int32)
        return lengths

    @staticmethod
    def of(samples: Examples | Sequence[Sample]) -> Examples:
        """One example a sample, weighed by its label tokens. Examples come back as they are."""
        if isinstance(samples, Examples):
            return samples
        every = Sequences.of(samples)
        return Examples(every, np.arange(len(every))[:, None], every.labels.astype(np.float64))

    def take(self, index: Sequence[int] | NDArray[np.integer[Any]]) -> Examples:
        """The examples at `index`, over the same samples."""
        at = np.asarray(index, np.int64)
        return replace(self, members=self.members[at], weights=self.weights[at])

    def __reduce__(self) -> tuple[Any, ...]:
        """One sample an example is what its samples tell; mapped samples go to another process by name alone."""
        if not self.columns and self._one_sample_each():
            return Examples.of, (self.samples,)
        return Examples, (self.samples, self.members, self.weights, self.columns)

    def _one_sample_each(self) -> bool:
        alone = np.array_equal(self.members, np.arange(len(self.samples))[:, None])
        return alone and np.array_equal(self.weights, self.samples.labels)

    def columns_of(self, members: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The columns of these samples."""
        return {name: column[list(members)] for name, column in self.columns.items()}
