"""The arithmetic of the limits: GCRA in its form as a leaky bucket (ITU-T I.371, annex A), in whole numbers.

A level rises by what is taken and falls by the limit each minute; what would lift it above the limit is refused. So a
key that was idle may use a minute's worth at once, and never more than its limit in the long run. A level is counted in
sixty-thousandths of a request or token and the time in milliseconds, so that nothing is ever rounded; all numbers stay
below 2**53, which lets Lua's floating-point numbers (`redis_limits.py`) come out as Python's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

MINUTE = 60_000
"""Milliseconds, and parts of one request or token in a level."""
MOST = 100_000_000
"""Largest limit a minute, and largest amount that is taken or given back at once."""
DEEPEST = 8_000_000_000_000_000
"""No debt lifts a level above this; with MOST * MINUTE more it is still below 2**53."""
LEASE = MINUTE
"""Milliseconds after which an answer under way that nobody has renewed no longer counts: its server was killed."""
Refused = Literal["", "requests", "tokens", "streams"]


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What one caller may use: requests and tokens a minute, and answers at the same time. 0 is without limit."""

    requests: int = 0
    tokens: int = 0
    streams: int = 0

    def __bool__(self) -> bool:
        return bool(self.requests or self.tokens or self.streams)


@dataclass(frozen=True, slots=True)
class RateVerdict:
    """What a limiter answers: which limit refuses ("" where all let it through), how long to wait, and what is left.

    `wait`, `requests_reset` and `tokens_reset` (until all is left again) are milliseconds.
    """

    refused: Refused = ""
    wait: int = 0
    requests_left: int = 0
    requests_reset: int = 0
    tokens_left: int = 0
    tokens_reset: int = 0


class Limiter(Protocol):
    """Counts what each caller uses. `now` is a time in milliseconds in place of the limiter's own clock."""

    async def take(
        self, caller: str, limits: RateLimits, requests: int, tokens: int, lease: str, now: int = 0
    ) -> RateVerdict:
        """Take all of it or nothing. `lease` names an answer under way ("": none is begun)."""

    async def settle(
        self, caller: str, limits: RateLimits, requests: int, tokens: int, lease: str, now: int = 0
    ) -> RateVerdict:
        """Correct what was taken by a difference: below 0 it is given back, above 0 it is taken whatever is left.
        The answer `lease` has ended."""

    async def renew(self, caller: str, lease: str, now: int = 0) -> None:
        """The answer is still under way; to be called several times in `LEASE`."""


def fallen(level: int, elapsed: int, limit: int) -> int:
    """A level after some milliseconds.

    >>> fallen(3 * MINUTE, MINUTE // 2, limit=4) == 1 * MINUTE
    True
    """
    return max(0, level - max(0, elapsed) * limit) if limit else 0


def wait_for(level: int, amount: int, limit: int) -> int:
    """Milliseconds until so much may be taken; 0 for now.

    >>> wait_for(60 * MINUTE, 1, limit=60), wait_for(59 * MINUTE, 1, limit=60)
    (1000, 0)
    """
    if not limit or not amount:
        return 0
    return max(0, -(-(level + amount * MINUTE - limit * MINUTE) // limit))


def remaining(level: int, limit: int) -> int:
    """How many whole requests or tokens may be taken now."""
    return max(0, limit * MINUTE - level) // MINUTE


def reset(level: int, limit: int) -> int:
    """Milliseconds until the level is 0."""
    return -(-level // limit) if limit else 0


def moved(level: int, amount: int) -> int:
    """A level with an amount taken, or given back where it is below 0."""
    return min(DEEPEST, max(0, level + amount * MINUTE))


def verdict(refused: Refused, wait: int, levels: tuple[int, int], limits: RateLimits) -> RateVerdict:
    """What is answered at these levels of requests and tokens."""
    requests, tokens = levels
    return RateVerdict(
        refused,
        wait,
        remaining(requests, limits.requests),
        reset(requests, limits.requests),
        remaining(tokens, limits.tokens),
        reset(tokens, limits.tokens),
    )
