"""Steps of the batch plan, read by worker processes."""

from __future__ import annotations

import contextlib
import math
import signal
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker

import torch
from torch.utils.data import DataLoader, Dataset

from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import Batch, pack_examples
from tuneloop.data.batches.plan import BatchPlan
from tuneloop.data.tokens.samples import Sample


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step of one rank. All but `batches` is of all ranks together; `weight` divides the loss.

    `idle` are the tokens of passes that teach nothing, which ranks make so that each makes as many.
    """

    number: int
    batches: list[Batch]
    weight: float
    label_tokens: int
    tokens: int
    samples: int
    digest: str
    idle: int = 0


class Steps(Dataset[Step]):
    """Steps first … last-1 of a plan as one rank sees them: item i is step first + i."""

    def __init__(
        self,
        plan: BatchPlan,
        examples: Examples | Sequence[Sample],
        first: int,
        last: int,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.plan, self.examples, self.first, self.last = plan, Examples.of(examples), first, last
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return max(0, self.last - self.first)

    def __getitem__(self, i: int) -> Step:
        number = self.first + i
        bins = self.plan.step(number)
        mine = [pack_examples(self.examples, b) for b in bins[self.rank :: self.world_size]]
        # Every rank makes the same number of passes, else gradient averaging would wait for ever.
        while len(mine) < math.ceil(len(bins) / self.world_size):
            mine.append(pack_examples(self.examples, [bins[0][0]], labelled=False))
        chosen = sorted(k for b in bins for k in b)
        members = self.examples.members[chosen].ravel()
        samples = self.examples.samples
        names = "/".join(name.decode() for name in samples.names[members].tolist())
        return Step(
            number=number,
            batches=mine,
            weight=float(self.examples.weights[chosen].sum()),
            label_tokens=int(samples.labels[members].sum()),
            tokens=sum(self.plan.lengths[k] for k in chosen),
            samples=len(members),
            digest=f"{zlib.crc32(names.encode()):08x}",
            idle=-len(bins) % self.world_size * self.plan.lengths[bins[0][0]],
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
