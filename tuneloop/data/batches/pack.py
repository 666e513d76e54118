"""A batch: several samples behind each other in one row, one forward pass, no padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuneloop.data.batches.examples import Examples
from tuneloop.data.tokens.samples import Sample


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One forward pass: packed samples in one row.

    input_ids and position_ids int64 [1, length]; positions int64 [labels], where the label is predicted from; targets
    int64 [labels]; segments: the samples' lengths, which add up to length; columns: name -> tensor [samples], what
    the objective is told of each sample (`Examples.columns`); members: which samples they are, counted in the dataset,
    whose `Sequences.row` and `names` tell the record of each. `media` will hold what belongs to placeholders among the
    tokens (pictures); it is None for now.
    """

    input_ids: Tensor
    position_ids: Tensor
    positions: Tensor
    targets: Tensor
    segments: tuple[int, ...]
    columns: dict[str, Tensor] = field(default_factory=dict)
    members: tuple[int, ...] = ()
    media: None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on the device; the segments stay numbers."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            input_ids=moved(self.input_ids),
            position_ids=moved(self.position_ids),
            positions=moved(self.positions),
            targets=moved(self.targets),
            columns={name: moved(column) for name, column in self.columns.items()},
        )

    @property
    def labels(self) -> int:
        """Label tokens; 0 in the pass of an idle rank."""
        return len(self.targets)


def pack(
    samples: Sequence[Sample],
    *,
    labelled: bool = True,
    columns: dict[str, NDArray[Any]] | None = None,
    members: Sequence[int] = (),
) -> Batch:
    """Put samples behind each other. `labelled=False` keeps the shape and carries no label (an idle rank's pass)."""
    lengths = np.array([len(s.ids) for s in samples])
    starts = np.cumsum(lengths) - lengths
    ids = np.concatenate([s.ids for s in samples]).astype(np.int64)
    trained = np.concatenate([s.trained for s in samples])
    # The first token of a sample is never predicted, least of all from the sample before.
    trained[starts[lengths > 0]] = False
    at = np.flatnonzero(trained) if labelled else np.zeros(0, np.int64)
    return Batch(
        input_ids=torch.from_numpy(ids).unsqueeze(0),
        position_ids=torch.from_numpy(np.arange(len(ids)) - np.repeat(starts, lengths)).unsqueeze(0),
        positions=torch.from_numpy(at - 1),
        targets=torch.from_numpy(ids[at]),
        segments=tuple(lengths.tolist()),
        columns={name: torch.from_numpy(np.ascontiguousarray(c)) for name, c in (columns or {}).items()},
        members=tuple(members),
    )


def pack_examples(examples: Examples, chosen: Sequence[int], *, labelled: bool = True) -> Batch:
    """The samples of the chosen examples in one row, with their columns; an idle rank's pass has none."""
    members = examples.members[list(chosen)].ravel().tolist()
    columns = examples.columns_of(members) if labelled else {}
    return pack([examples.samples[m] for m in members], labelled=labelled, columns=columns, members=members)
