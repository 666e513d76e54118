"""A packed row: several samples behind each other in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuneloop.data.batches.examples import Examples
from tuneloop.data.tokens.samples import Sample


class Packed(TypedDict, total=False):
    """One forward pass: several samples in one row, no padding.

    input_ids and position_ids int64 [1, length]; positions int64 [labels], where the label is predicted from; targets
    int64 [labels]; segments: the samples' lengths, which add up to length; columns: name -> tensor [samples], what
    the objective is told of each sample (`Examples.columns`); members: which samples they are, counted in the dataset.
    """

    input_ids: Tensor
    position_ids: Tensor
    positions: Tensor
    targets: Tensor
    segments: tuple[int, ...]
    columns: dict[str, Tensor]
    members: tuple[int, ...]


def pack(
    samples: Sequence[Sample],
    *,
    labelled: bool = True,
    columns: dict[str, NDArray[Any]] | None = None,
    members: Sequence[int] = (),
) -> Packed:
    """Put samples behind each other. `labelled=False` keeps the shape and carries no label (an idle rank's pass)."""
    lengths = np.array([len(s.ids) for s in samples])
    starts = np.cumsum(lengths) - lengths
    ids = np.concatenate([s.ids for s in samples]).astype(np.int64)
    trained = np.concatenate([s.trained for s in samples])
    # The first token of a sample is never predicted, least of all from the sample before.
    trained[starts[lengths > 0]] = False
    at = np.flatnonzero(trained) if labelled else np.zeros(0, np.int64)
    row = Packed(
        input_ids=torch.from_numpy(ids).unsqueeze(0),
        position_ids=torch.from_numpy(np.arange(len(ids)) - np.repeat(starts, lengths)).unsqueeze(0),
        positions=torch.from_numpy(at - 1),
        targets=torch.from_numpy(ids[at]),
        segments=tuple(lengths.tolist()),
    )
    if columns:
        row["columns"] = {name: torch.from_numpy(np.ascontiguousarray(c)) for name, c in columns.items()}
    if len(members):
        row["members"] = tuple(members)
    return row


def pack_items(items: Examples, chosen: Sequence[int], *, labelled: bool = True) -> Packed:
    """The samples of the chosen items in one row, with their columns; an idle rank's pass is told nothing."""
    members = items.members[list(chosen)].ravel().tolist()
    told = items.told(members) if labelled else {}
    return pack([items.samples[m] for m in members], labelled=labelled, columns=told, members=members)
