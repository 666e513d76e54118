"""How augmentation calls a model: in slices, each remembered when it is done, with its progress told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.data.augmenting.memory import Memory
from tuneloop.data.augmenting.progress import Progress


def _nobody(share: float) -> None:
    """Nobody listens."""


@dataclass
class Watch:
    """Whom a model tells, while it works on one call, which share of it is done."""

    hear: Callable[[float], None] = _nobody


@dataclass(frozen=True)
class Calls:
    """What the models of one method were asked, and where a reader is told how far it is."""

    memory: Memory
    progress: Progress | None
    """None where the calls are not worth telling."""
    watch: Watch

    def sliced(
        self, name: str, make: Callable[..., list[Any]], size: int, items: Sequence[Any], *more: Any
    ) -> list[Any]:
        """`make(items, *more)`, one result an item, asked `size` items at a time; a crash loses one slice at most."""
        if self.progress is not None:
            self.progress.call()
        out: list[Any] = []
        for at in range(0, len(items), size):
            part = list(items[at : at + size])

            def hear(share: float, begin: int = at, count: int = len(part)) -> None:
                if self.progress is not None:
                    self.progress.within((begin + share * count) / len(items))

            self.watch.hear = hear
            out += self.memory.call(name, [part, *more], lambda part=part: make(part, *more))  # type: ignore[misc]
            hear(1.0)
        return out
