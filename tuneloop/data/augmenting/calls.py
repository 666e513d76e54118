"""Model calls of augmentation: in slices, each cached on disk when it is done, with progress reports."""

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
    """A progress callback of a model during one call: the share of it that is done."""

    hear: Callable[[float], None] = _nobody


@dataclass(frozen=True)
class Calls:
    """The model calls of one method: their cache on disk and their progress."""

    memory: Memory
    progress: Progress | None
    """None where the calls are not reported."""
    watch: Watch

    def sliced(
        self, name: str, make: Callable[..., list[Any]], size: int, items: Sequence[Any], *more: Any
    ) -> list[Any]:
        """`make(items, *more)`, one output an item, called on `size` items at a time; a crash loses one slice."""
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
