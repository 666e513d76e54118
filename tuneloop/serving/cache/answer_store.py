"""The protocol of an answer store: bytes by key, for some time, up to some size, and gone when a person asks for it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

OVERHEAD = 256
"""Bytes that an answer is counted with beside its own."""
FORGOTTEN_SECONDS = 3600.0
"""How long a store remembers that somebody was forgotten: what was under way then must not be stored afterwards."""
MARGIN = 5.0
"""Seconds by which the clocks of two machines may differ."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Whose answers are gone since `at` (seconds since 1970): digests of a tenant and of a person; "" is every one."""

    tenant: str
    person: str
    at: float = 0.0

    def covers(self, key: str, people: Collection[str], began: float = 0.0) -> bool:
        """Whether the answer of `key`, which `people` have asked for since `began`, is meant.

        >>> Forgotten("", "ann", 9).covers("shop:1", {"ann", "bob"}, 8), Forgotten("bank", "").covers("shop:1", ())
        (True, False)
        """
        return (
            began - MARGIN < self.at
            and self.tenant in ("", key.partition(":")[0])
            and (not self.person or self.person in people)
        )


class AnswerStore(Protocol):
    """Where answers are. Each may raise whatever its library raises; the cache then does without.

    `size` and `count` are what was known at the last `put`: bytes, and answers.
    """

    @property
    def size(self) -> int: ...

    @property
    def count(self) -> int: ...

    async def get(self, key: str, people: Iterable[str]) -> bytes | None:
        """The answer of a key, for `people`, who count from now on among those who asked for it."""

    async def put(self, key: str, answer: bytes, people: Iterable[str], seconds: float, began: float) -> None:
        """Store an answer for so many seconds; those whose last use is longest ago make place. Nothing is stored where
        one of `people` was forgotten after `began` (seconds since 1970)."""

    async def forget(self, tenant: str, person: str) -> int:
        """Remove the answers of a tenant and a person (digests, "" is every one); how many there were."""

    async def close(self) -> None: ...
