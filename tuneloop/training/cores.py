"""On which cores a step computes: beside other programs, on those that they leave free.

A product is shared out among the threads in equal parts and waits for the last of them. So one thread that must share
its core with a stranger holds up all the others; threads that share the free cores among themselves do not wait. Their
number never changes, since the order in which a product adds up may depend on it: losses are the same to the last bit.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from tuneloop.base.language import t
from tuneloop.model.checkpoint import State
from tuneloop.monitor.meters import OtherPrograms
from tuneloop.runs.journal import Journal
from tuneloop.training.loop import StepResult

INTERVAL = 0.5
"""Seconds between two looks at what other programs do: the clocks of the system count in hundredths."""
MARGIN = 0.2
"""Cores by which what is free must differ from the present number, beyond the half that rounds."""
TASKS = Path("/proc/self/task")
"""The threads of this process, by their numbers; Linux alone has it."""


def fitting(free: float, most: int, now: int) -> int:
    """How many of `most` cores to use where `free` are free; `now` as many as now, where it is a close thing.

    >>> fitting(1.0, 2, 2), fitting(1.4, 2, 2), fitting(1.4, 2, 1), fitting(1.9, 2, 1), fitting(-1.0, 2, 2)
    (1, 2, 1, 2, 1)
    """
    wanted = max(1, min(most, math.floor(free + 0.5)))
    return now if abs(free - now) < 0.5 + MARGIN else wanted


def bind(cores: set[int]) -> None:
    """Let all threads of this process run on these cores alone."""
    for thread in TASKS.iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)


def can_choose() -> bool:
    """Whether this system lets a process choose its cores, and there are threads that would wait for each other."""
    return hasattr(os, "sched_setaffinity") and TASKS.is_dir() and torch.get_num_threads() > 1


def _seconds() -> list[float]:
    """What each core has worked since the start of the machine, in seconds."""
    return [times.user + times.nice + times.system for times in psutil.cpu_times(percpu=True)]


@dataclass(slots=True)
class Cores:
    """A watcher of the loop: after a step it looks at the other programs, and the next one has the cores that are free.

    `allowed` are the cores that the process began with. Of them it uses as many as it has threads, or fewer.
    """

    journal: Journal
    say: Callable[[str], None]
    allowed: set[int] = field(default_factory=lambda: os.sched_getaffinity(0))
    count: int = field(default_factory=torch.get_num_threads)
    others: OtherPrograms = field(default_factory=OtherPrograms)
    before: list[float] = field(default_factory=_seconds)
    now: int = 0

    def __post_init__(self) -> None:
        self.count = min(self.count, len(self.allowed))
        self.now = self.count

    def on_step(self, state: State, outcome: StepResult) -> None:
        if self.others.seconds < INTERVAL:
            return
        busy, seconds = self.others.cores(), _seconds()
        worked = {core: seconds[core] - self.before[core] for core in self.allowed if core < len(seconds)}
        self.others, self.before = OtherPrograms(), seconds
        wanted = fitting((os.cpu_count() or 1) - busy, self.count, self.now)
        if wanted == self.now:
            return
        self.now = wanted
        bind(self.allowed if wanted == self.count else set(sorted(worked, key=lambda core: worked[core])[:wanted]))
        self.journal.event("cores", step=state.step, cores=wanted, of=self.count, others=round(busy, 1))
        self.say(
            t(
                "Other programs keep {busy} cores busy: on {n} of {most} cores from here on.",
                busy=f"{busy:.1f}",
                n=wanted,
                most=self.count,
            )
        )

    def on_end(self, state: State) -> None:
        pass


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Inside, cores may be chosen; behind it, all threads have those again that the process had."""
    if not can_choose():
        yield
        return
    allowed = os.sched_getaffinity(0)
    try:
        yield
    finally:
        if os.sched_getaffinity(0) != allowed:
            bind(allowed)
