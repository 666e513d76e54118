"""The limits of one process, in its memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from tuneloop.serving.access.gcra import (
    LEASE,
    RateLimits,
    RateVerdict,
    Refused,
    fallen,
    moved,
    reset,
    verdict,
    wait_for,
)

SWEEP = 1024
"""Callers that are remembered before those whose levels have fallen to 0 are forgotten."""


@dataclass(slots=True)
class _Meter:
    """The levels of one caller as of `at`, and its answers under way with the time at which each no longer counts."""

    at: int
    levels: tuple[int, int] = (0, 0)
    leases: dict[str, int] = field(default_factory=dict)
    idle_at: int = 0

    def fallen(self, limits: RateLimits, now: int) -> tuple[int, int]:
        elapsed = now - self.at
        return fallen(self.levels[0], elapsed, limits.requests), fallen(self.levels[1], elapsed, limits.tokens)

    def move(self, levels: tuple[int, int], amounts: tuple[int, int], limits: RateLimits, now: int) -> tuple[int, int]:
        first = moved(levels[0], amounts[0]) if limits.requests else 0
        second = moved(levels[1], amounts[1]) if limits.tokens else 0
        self.at, self.levels = now, (first, second)
        self.idle_at = now + max(reset(first, limits.requests), reset(second, limits.tokens))
        return self.levels

    def under_way(self, now: int) -> int:
        self.leases = {name: until for name, until in self.leases.items() if until > now}
        return len(self.leases)


def clock() -> int:
    """Milliseconds."""
    return time.monotonic_ns() // 1_000_000


class MemoryLimits:
    """A Limiter. Its methods do not wait, so that no two of them mix in one event loop."""

    def __init__(self) -> None:
        self._meters: dict[str, _Meter] = {}

    async def take(
        self, caller: str, limits: RateLimits, requests: int, tokens: int, lease: str, now: int = 0
    ) -> RateVerdict:
        now = now or clock()
        meter = self._meter(caller, now)
        levels = meter.fallen(limits, now)
        waits = (wait_for(levels[0], requests, limits.requests), wait_for(levels[1], tokens, limits.tokens))
        refused: Refused = "requests" if waits[0] else "tokens" if waits[1] else ""
        if not refused and lease and limits.streams and meter.under_way(now) >= limits.streams:
            refused = "streams"
        if refused:
            return verdict(refused, max(waits), levels, limits)
        if lease:
            meter.leases[lease] = now + LEASE
        return verdict("", 0, meter.move(levels, (requests, tokens), limits, now), limits)

    async def settle(
        self, caller: str, limits: RateLimits, requests: int, tokens: int, lease: str, now: int = 0
    ) -> RateVerdict:
        now = now or clock()
        meter = self._meter(caller, now)
        meter.leases.pop(lease, None)
        levels = meter.move(meter.fallen(limits, now), (requests, tokens), limits, now)
        return verdict("", 0, levels, limits)

    async def renew(self, caller: str, lease: str, now: int = 0) -> None:
        now = now or clock()
        self._meter(caller, now).leases[lease] = now + LEASE

    def _meter(self, caller: str, now: int) -> _Meter:
        if len(self._meters) >= SWEEP and caller not in self._meters:
            self._meters = {name: one for name, one in self._meters.items() if one.idle_at > now or one.under_way(now)}
        return self._meters.setdefault(caller, _Meter(now))
