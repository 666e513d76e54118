"""The loss of a step by the file that its rows come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuneloop.base.files import short_names
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import Batch


@dataclass(frozen=True, slots=True, eq=False)
class RowSources:
    """The files of a training side. of_sample int32 [samples]: the number of each sample's file in `names`; weights
    float64 [samples]: what its example counts for, at the example's first sample."""

    names: tuple[str, ...]
    of_sample: NDArray[np.int32]
    weights: NDArray[np.float64]

    @staticmethod
    def of(examples: Examples, files: Sequence[str]) -> RowSources:
        """`files` has the file of each record, as often as it is trained on."""
        paths = list(dict.fromkeys(files))
        number = {path: k for k, path in enumerate(paths)}
        of_record = np.array([number[path] for path in files], np.int32)
        weights = np.zeros(len(examples.samples))
        weights[examples.members[:, 0]] = examples.weights
        return RowSources(tuple(short_names(paths)), of_record[examples.samples.row], weights)

    def means(self, batches: Sequence[Batch], per_item: Sequence[Tensor]) -> dict[str, float]:
        """The mean loss of each file that these batches hold rows of: over label tokens, or items where these count.

        `per_item` is what each batch's examples lost, on whatever device. It waits for that.
        """
        first = [m for b, lost in zip(batches, per_item, strict=True) if len(lost) for m in _first(b, len(lost))]
        if not first:
            return {}
        losses = torch.cat([lost for lost in per_item if len(lost)]).double().cpu().numpy()
        source, weights = self.of_sample[first], self.weights[first]
        sums = np.bincount(source, losses, len(self.names))
        counts = np.bincount(source, weights, len(self.names))
        return {self.names[k]: float(sums[k] / counts[k]) for k in np.flatnonzero(counts).tolist()}


def _first(batch: Batch, examples: int) -> Sequence[int]:
    """The first sample of each of a batch's examples."""
    return batch.members[:: len(batch.members) // examples]
