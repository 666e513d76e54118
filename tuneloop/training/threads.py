"""How many threads a step computes with: one for each core that other programs leave free.

A product is shared out among the threads in equal parts and waits for the last of them, so one thread that must share
its core halves the speed of all. The sums are the same with any number of threads (`tests/training/test_threads.py`).
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from tuneloop.base.language import t
from tuneloop.model.checkpoint import State
from tuneloop.monitor.meters import OtherPrograms
from tuneloop.runs.journal import Journal
from tuneloop.training.loop import StepResult

INTERVAL = 0.5
"""Seconds between two looks at what other programs do: the clocks of the system count in hundredths."""
MARGIN = 0.2
"""Cores by which what is free must differ from the present number of threads, beyond the half that rounds."""


def fitting(free: float, most: int, now: int) -> int:
    """Threads for `free` cores, at most `most`; those of `now` where it is a close thing.

    >>> fitting(1.0, 2, 2), fitting(1.4, 2, 2), fitting(1.4, 2, 1), fitting(1.9, 2, 1), fitting(-1.0, 2, 2)
    (1, 2, 1, 2, 1)
    """
    wanted = max(1, min(most, math.floor(free + 0.5)))
    near = abs(free - now) < 0.5 + MARGIN
    return now if near else wanted


@dataclass(slots=True)
class Threads:
    """A watcher of the loop: after a step it looks at the other programs, and the next one has as many threads as fit.

    `most` are the threads that torch began with, `all_cores` those of the machine.
    """

    journal: Journal
    say: Callable[[str], None]
    most: int = field(default_factory=torch.get_num_threads)
    all_cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    others: OtherPrograms = field(default_factory=OtherPrograms)

    def on_step(self, state: State, outcome: StepResult) -> None:
        if self.others.seconds < INTERVAL:
            return
        busy, now = self.others.cores(), torch.get_num_threads()
        self.others = OtherPrograms()
        if (wanted := fitting(self.all_cores - busy, self.most, now)) == now:
            return
        torch.set_num_threads(wanted)
        self.journal.event("threads", step=state.step, threads=wanted, of=self.most, others=round(busy, 1))
        self.say(t("Other programs keep {busy} cores busy: {n} of {most} threads from here on.",
                   busy=f"{busy:.1f}", n=wanted, most=self.most))  # fmt: skip

    def on_end(self, state: State) -> None:
        pass


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Inside, the number of threads may change; behind it, it is what it was."""
    most = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(most)
