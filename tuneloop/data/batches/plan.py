"""The batch plan: which samples make up optimizer step k, and how they share forward passes.

A pure function of lengths, batch size, token budget, seed and epoch. Bins hold whole samples of one step; ranks and
micro-batches only share out a step's bins, so step k trains the same samples on any number of ranks and workers.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tuneloop.base.errors import DataError
from tuneloop.data.batches.examples import Examples
from tuneloop.data.tokens.samples import Sample
from tuneloop.recipe.schema import Recipe

Bin = tuple[int, ...]
FILL = 1024
"""Tokens that a pass on a CPU is filled up to. More are not faster there, and take memory (benchmarks/training.py)."""


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> tuple[int, ...]:
    order = list(range(n))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tuple(order)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How samples become steps. `lengths` in tokens, one a sample: any sequence of ints, or an array of them."""

    lengths: Sequence[int] | NDArray[np.integer[Any]]
    """Of items: single samples, or the two of a pair together."""
    batch_size: int
    token_budget: int
    seed: int
    micro_batch_size: int | None = None
    packing: bool = True
    fill: int | None = None
    """Tokens that a pass is filled up to, if fewer than the budget allows; a longer item has a pass of its own."""
    skipped: tuple[int, ...] = ()
    """Batches of the plan, counted from 0, that no step trains on: the next one takes their place."""
    dropped: frozenset[int] = frozenset()
    """Examples that no step trains on; a batch that has no others is left as it is."""

    def __post_init__(self) -> None:
        # Four bytes each, and plain ints to whoever asks for one.
        packed = array("i", np.asarray(self.lengths, np.int32).tobytes())
        object.__setattr__(self, "lengths", packed)
        longest = max(packed, default=0)
        if longest > self.token_budget:
            raise DataError("TL-DATA-TOO-LONG", length=longest, budget=self.token_budget)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def order(self, epoch: int) -> tuple[int, ...]:
        """The samples of an epoch (counted from 0), shuffled."""
        return _order(len(self.lengths), self.seed, epoch)

    def batch(self, k: int) -> int:
        """The batch that optimizer step k trains on; both are counted from 0 over all epochs.

        >>> plan = BatchPlan([9] * 8, batch_size=2, token_budget=32, seed=0, skipped=(3, 1))
        >>> [plan.batch(k) for k in range(4)]
        [0, 2, 4, 5]
        """
        for skipped in sorted(self.skipped):
            k += skipped <= k
        return k

    def step(self, k: int) -> tuple[Bin, ...]:
        """The bins of optimizer step k, counted from 0 over all epochs."""
        epoch, position = divmod(self.batch(k), self.steps_per_epoch)
        chosen = self.order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        if self.dropped:
            chosen = tuple(i for i in chosen if i not in self.dropped) or chosen
        return tuple(self._bins(chosen))

    def _bins(self, chosen: Sequence[int]) -> Iterator[Bin]:
        """First fit, longest first: at most `token_budget` tokens and `micro_batch_size` whole samples a bin."""
        limit = min(self.token_budget, self.fill or self.token_budget)
        most = (self.micro_batch_size or self.batch_size) if self.packing else 1
        bins: list[list[int]] = []
        free: list[int] = []
        for i in sorted(chosen, key=lambda i: (-self.lengths[i], i)):
            chosen_bin = next((b for b, r in enumerate(free) if r >= self.lengths[i] and len(bins[b]) < most), None)
            if chosen_bin is None:
                bins.append([])
                free.append(max(limit, self.lengths[i]))
                chosen_bin = len(bins) - 1
            bins[chosen_bin].append(i)
            free[chosen_bin] -= self.lengths[i]
        yield from (tuple(b) for b in bins)


def batch_plan(
    recipe: Recipe,
    examples: Examples | Sequence[Sample],
    *,
    packing: bool = True,
    skipped: Sequence[int] = (),
    dropped: Iterable[int] = (),
) -> BatchPlan:
    """The batch plan of a recipe. `packing` false where the model cannot pack; `skipped` batches and `dropped` examples
    are left out."""
    train = recipe.train
    return BatchPlan(
        lengths=Examples.of(examples).lengths,
        batch_size=train.batch_size,
        token_budget=train.token_budget,
        seed=recipe.seed,
        micro_batch_size=train.micro_batch_size,
        packing=train.packing and packing,
        fill=None if torch.cuda.is_available() or train.token_budget <= FILL else FILL,
        skipped=tuple(skipped),
        dropped=frozenset(dropped),
    )
