"""What a step cost: seconds, real tokens a second, memory. Clocks never enter what must be equal between runs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from dataclasses import dataclass, field

import psutil
import torch


def memory_gb() -> float:
    """Memory this run holds: on a GPU the most it allocated there, else the process's resident set. GB (1e9)."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    return float(psutil.Process().memory_info().rss) / 1e9


class OtherPrograms:
    """What other programs take of the processor from when this is made. What this one and its workers take is its own.

    Not counted is what a virtual machine's host keeps for itself: fewer threads would get no more of it.
    """

    def __init__(self) -> None:
        self.began, self.all, self.own = time.perf_counter(), self._all(), self._own()

    @property
    def seconds(self) -> float:
        """How long ago it was made."""
        return time.perf_counter() - self.began

    def cores(self) -> float:
        """The cores that they have kept busy, on average."""
        return max(0.0, (self._all() - self.all) - (self._own() - self.own)) / max(self.seconds, 1e-9)

    @staticmethod
    def _all() -> float:
        times = psutil.cpu_times()._asdict()
        return float(sum(times.get(kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq")))

    @staticmethod
    def _own() -> float:
        seconds = 0.0
        for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):  # they read batches
            with contextlib.suppress(psutil.Error):
                used = psutil.Process(pid).cpu_times()
                seconds += used.user + used.system
        return seconds


@dataclass(slots=True)
class Meter:
    """Counts from one reading to the next."""

    began: float = field(default_factory=time.perf_counter)
    total_tokens: int = 0
    total_seconds: float = 0.0
    peak_gb: float = 0.0
    last_tokens: int = 0
    last_seconds: float = 0.0
    last_gb: float = 0.0

    def read(self, tokens: int, steps: int = 1) -> dict[str, float]:
        """The clock entry of a metrics line: so many steps, of `tokens` real (non-padding) tokens together, have ended
        since the last reading. `seconds` is that of one step."""
        now = time.perf_counter()
        seconds, self.began = now - self.began, now
        self.total_tokens += tokens
        self.total_seconds += seconds
        memory = memory_gb()
        self.last_tokens, self.last_seconds, self.last_gb = tokens, seconds, memory
        self.peak_gb = max(self.peak_gb, memory)
        return {
            "time": round(time.time(), 3),
            "seconds": round(seconds / steps, 4),
            "tokens_per_second": round(tokens / seconds, 1) if seconds else 0.0,
            "memory_gb": round(memory, 3),
        }

    def pause(self) -> None:
        """Start the next interval now: what happened since the last reading was not training."""
        self.began = time.perf_counter()

    @property
    def tokens_per_second(self) -> float:
        """Mean over all intervals read."""
        return self.total_tokens / self.total_seconds if self.total_seconds else 0.0
