"""How the threads of a product wait for each other: awake on a quiet machine, asleep beside other programs.

A product is shared out among the threads in equal parts and waits for the last of them. To wait awake for a few
microseconds saves the time that waking up takes (base/environment.py); beside other programs it takes the core from the
very thread that is waited for. GNU's OpenMP sleeps at once where a process has more threads than cores, so an idle team
of threads is kept while other programs run. Number and work of the training threads stay, and so does each sum.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import Self

import torch

from tuneloop.model.checkpoint import State
from tuneloop.monitor.meters import OtherPrograms
from tuneloop.runs.journal import Journal
from tuneloop.training.step_result import StepResult

INTERVAL = 0.5
"""Seconds between two looks at what other programs do: the clocks of the system count in hundredths."""
SHARED = 2 * 10**6
"""Numbers in a sum that torch shares out among all threads."""


def is_crowded(free: float, threads: int, now: bool) -> bool:
    """Whether fewer cores are free than there are threads; `now` is what held before, and stays where it is close.

    >>> [is_crowded(free, 2, False) for free in (2.0, 1.5, 1.2, -1.0)], is_crowded(1.5, 2, True)
    ([False, False, True, True], True)
    """
    return free < threads - (0.3 if now else 0.7)


class IdleTeam:
    """Threads that do nothing until they are released."""

    def __init__(self) -> None:
        self._released, began = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._wait, args=(began,), daemon=True)
        self._thread.start()
        began.wait()

    def _wait(self, began: threading.Event) -> None:
        torch.ones(SHARED).sum()  # OpenMP makes a team for each thread of Python that computes, and keeps it
        began.set()
        self._released.wait()

    def release(self) -> None:
        self._released.set()
        self._thread.join()


@dataclass(slots=True)
class Waiting:
    """A watcher of the loop that looks at the other programs after a step; behind the context its team is gone."""

    journal: Journal
    threads: int = field(default_factory=torch.get_num_threads)
    all_cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    others: OtherPrograms = field(default_factory=OtherPrograms)
    team: IdleTeam | None = None

    def on_step(self, state: State, outcome: StepResult) -> None:
        if self.others.seconds < INTERVAL:
            return
        busy, asleep = self.others.cores(), self.team is not None
        self.others = OtherPrograms()
        if is_crowded(self.all_cores - busy, self.threads, asleep) == asleep:
            return
        if self.team is None:
            self.team = IdleTeam()
        else:
            self._release()
        self.journal.event("threads", step=state.step, asleep=not asleep, others=round(busy, 1))

    def on_end(self, state: State) -> None:
        pass

    def _release(self) -> None:
        if self.team is not None:
            self.team.release()
            self.team = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._release()
