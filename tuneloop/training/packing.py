"""Which rows share a forward pass outside the batch plan, and whether a model can be packed at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import Batch, pack_examples
from tuneloop.data.tokens.samples import Sample
from tuneloop.model.backbone import rope_packing_limit
from tuneloop.training.loop import held_loss


def packs_exactly(model: nn.Module, items: Examples, *others: Examples) -> bool:
    """Whether two items in one row lose exactly what they lose alone; if not, the model must not be packed.

    The two shortest items tell. `others` are rows that will be packed as well.
    """
    limit = rope_packing_limit(model)
    if limit is not None and max(int(side.samples.lengths.max(initial=0)) for side in (items, *others)) > limit:
        return False
    shortest = np.argsort(np.where(items.weights > 0, items.lengths, np.iinfo(np.int32).max), kind="stable")[:2]
    items = _alone(items, shortest)
    first, *more = range(len(items))
    device = next(model.parameters()).device
    coarse = next(model.parameters()).dtype != torch.float32

    def loss(items: Examples, *rows: list[int]) -> float:
        return held_loss(model, [pack_examples(items, row) for row in rows], device)

    apart, together = loss(items, [first], *([k] for k in more)), loss(items, [first, *more])
    if abs(apart - together) > (1e-2 if coarse else 1e-4) * max(1.0, float(items.weights.sum())):
        return False
    if not more:
        return True
    # Half precision rounds as coarsely as a small leak is, and a row of another shape rounds otherwise. So four rows of
    # one shape: where neither item sees the other, reversing one changes as much beside either form of the other.
    turned = _reversed(items, first)
    beside = loss(turned, [first, *more]) - loss(_reversed(turned, *more), [first, *more])
    leak = abs(together - loss(_reversed(items, *more), [first, *more]) - beside)
    return leak <= (1e-3 if coarse else 1e-4) * max(1.0, float(items.weights[more].sum()))


def _alone(items: Examples, chosen: NDArray[np.integer[Any]]) -> Examples:
    """The chosen items, over their own samples."""
    members = items.members[chosen]
    columns = {name: column[members.ravel()] for name, column in items.columns.items()}
    numbers = np.arange(members.size).reshape(members.shape)
    return Examples(items.samples.take(members.ravel()), numbers, items.weights[chosen], columns)


def _reversed(items: Examples, *which: int) -> Examples:
    """The items with these read backwards."""
    samples, ids = items.samples, items.samples.ids.copy()
    for member in items.members[list(which)].ravel().tolist():
        own = slice(*samples.starts[member : member + 2].tolist())
        ids[own] = ids[own][::-1].copy()
    return replace(items, samples=replace(samples, ids=ids, folder=None))


def rows(items: Examples | Sequence[Sample], budget: int, *, packing: bool = True) -> Iterator[Batch]:
    """Held-out items as rows of at most `budget` tokens, in order."""
    items = Examples.of(items)
    held: list[int] = []
    tokens = 0
    for k, length in enumerate(items.lengths.tolist()):
        if held and (not packing or tokens + length > budget):
            yield pack_examples(items, held)
            held, tokens = [], 0
        held.append(k)
        tokens += length
    if held:
        yield pack_examples(items, held)
