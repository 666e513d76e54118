"""What a step cost: seconds, real tokens a second, memory. Clocks never enter what must be equal between runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import psutil
import torch


def memory_gb() -> float:
    """Memory this run holds: on a GPU the most it allocated there, else the process's resident set. GB (1e9)."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    return float(psutil.Process().memory_info().rss) / 1e9


@dataclass(slots=True)
class Meter:
    """Counts from one reading to the next."""

    began: float = field(default_factory=time.perf_counter)
    total_tokens: int = 0
    total_seconds: float = 0.0
    peak_gb: float = 0.0
    last_seconds: float = 0.0
    last_gb: float = 0.0

    def read(self, tokens: int) -> dict[str, float]:
        """The clock entry of a metrics line for a step of `tokens` real (non-padding) tokens."""
        now = time.perf_counter()
        seconds, self.began = now - self.began, now
        self.total_tokens += tokens
        self.total_seconds += seconds
        memory = memory_gb()
        self.last_seconds, self.last_gb = seconds, memory
        self.peak_gb = max(self.peak_gb, memory)
        return {
            "time": round(time.time(), 3),
            "seconds": round(seconds, 4),
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
