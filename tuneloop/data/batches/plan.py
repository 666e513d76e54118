"""The batch plan: which samples make up optimizer step k, and how they share forward passes.

A pure function of lengths, batch size, token budget, seed and epoch. Bins hold whole samples of one step; ranks and
micro-batches only share out a step's bins, so step k trains the same samples on any number of ranks and workers.
"""

from __future__ import annotations

import contextlib
import math
import random
import signal
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import resource_tracker
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tuneloop.base.errors import DataError
from tuneloop.data.batches.examples import Items
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

    def step(self, k: int) -> tuple[Bin, ...]:
        """The bins of optimizer step k, counted from 0 over all epochs."""
        epoch, position = divmod(k, self.steps_per_epoch)
        chosen = self.order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        return tuple(self._bins(chosen))

    def _bins(self, chosen: Sequence[int]) -> Iterator[Bin]:
        """First fit, longest first: at most `token_budget` tokens and `micro_batch_size` whole samples a bin."""
        limit = min(self.token_budget, self.fill or self.token_budget)
        most = (self.micro_batch_size or self.batch_size) if self.packing else 1
        bins: list[list[int]] = []
        room: list[int] = []
        for i in sorted(chosen, key=lambda i: (-self.lengths[i], i)):
            fit = next((b for b, r in enumerate(room) if r >= self.lengths[i] and len(bins[b]) < most), None)
            if fit is None:
                bins.append([])
                room.append(max(limit, self.lengths[i]))
                fit = len(bins) - 1
            bins[fit].append(i)
            room[fit] -= self.lengths[i]
        yield from (tuple(b) for b in bins)


def batch_plan(recipe: Recipe, items: Items | Sequence[Sample], *, packing: bool = True) -> BatchPlan:
    """The batch plan of a recipe. `packing` false where the model cannot pack."""
    train = recipe.train
    return BatchPlan(
        lengths=Items.of(items).lengths,
        batch_size=train.batch_size,
        token_budget=train.token_budget,
        seed=recipe.seed,
        micro_batch_size=train.micro_batch_size,
        packing=train.packing and packing,
        fill=None if torch.cuda.is_available() or train.token_budget <= FILL else FILL,
    )


class Packed(TypedDict, total=False):
    """One forward pass: several samples in one row, no padding.

    input_ids and position_ids int64 [1, length]; positions int64 [labels], where the label is predicted from; targets
    int64 [labels]; segments: the samples' lengths, which add up to length; columns: name -> tensor [samples], what
    the objective is told of each sample (`Items.columns`); members: which samples they are, counted in the dataset.
    """

    input_ids: Tensor
    position_ids: Tensor
    positions: Tensor
    targets: Tensor
    segments: tuple[int, ...]
    columns: dict[str, Tensor]
    members: tuple[int, ...]


def pack(
    samples: Sequence[Sample], *, labelled: bool = True, columns: dict[str, NDArray[Any]] | None = None,
    members: Sequence[int] = (),
) -> Packed:  # fmt: skip
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


def pack_items(items: Items, chosen: Sequence[int], *, labelled: bool = True) -> Packed:
    """The samples of the chosen items in one row, with their columns; an idle rank's pass is told nothing."""
    members = items.members[list(chosen)].ravel().tolist()
    told = items.told(members) if labelled else {}
    return pack([items.samples[m] for m in members], labelled=labelled, columns=told, members=members)


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step of one rank. All but `micros` is of the step on all ranks; the loss is divided by `weight`."""

    number: int
    micros: list[Packed]
    weight: float
    label_tokens: int
    tokens: int
    samples: int
    digest: str


class Steps(Dataset[Step]):
    """Steps first … last-1 of a plan as one rank sees them: item i is step first + i."""

    def __init__(
        self, plan: BatchPlan, items: Items | Sequence[Sample], first: int, last: int, *, rank: int = 0, ranks: int = 1
    ) -> None:
        self.plan, self.items, self.first, self.last = plan, Items.of(items), first, last
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return max(0, self.last - self.first)

    def __getitem__(self, i: int) -> Step:
        number = self.first + i
        bins = self.plan.step(number)
        mine = [pack_items(self.items, b) for b in bins[self.rank :: self.ranks]]
        # Every rank makes the same number of passes, else gradient averaging would wait for ever.
        while len(mine) < math.ceil(len(bins) / self.ranks):
            mine.append(pack_items(self.items, [bins[0][0]], labelled=False))
        chosen = sorted(k for b in bins for k in b)
        members = self.items.members[chosen].ravel()
        samples = self.items.samples
        names = "/".join(name.decode() for name in samples.names[members].tolist())
        return Step(
            number=number,
            micros=mine,
            weight=float(self.items.weights[chosen].sum()),
            label_tokens=int(samples.labels[members].sum()),
            tokens=sum(self.plan.lengths[k] for k in chosen),
            samples=len(members),
            digest=f"{zlib.crc32(names.encode()):08x}",
        )


def loader(steps: Steps, workers: int) -> Iterator[Step]:
    """The steps in order, prepared by `workers` processes (0: in this one). Any number gives the same steps."""
    # A generator of its own: DataLoader would otherwise draw its seed from the global state that dropout uses, and a
    # resumed run would see other dropout masks.
    own = torch.Generator().manual_seed(0)
    with _deaf() if workers else contextlib.nullcontext():
        return iter(
            DataLoader(
                steps,
                batch_size=None,
                num_workers=workers,
                generator=own,
                prefetch_factor=4 if workers else None,
                multiprocessing_context="spawn" if workers else None,
            )
        )


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes started inside never hear Ctrl-C: a terminal sends it to them as well, and the run must outlive it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it starts with the first worker else, and lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
