"""What augmentation needs of later rooms and of other machines, and what one batch of rows gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneloop.base.records import Record
from tuneloop.data.augmenting.calls import Watch

Chat = list[dict[str, Any]]
Answer = Callable[[Sequence[Chat]], list[str]]
"""Chats -> the assistant's next turn of each; "" where there is none."""
Score = Callable[[Sequence[str]], list[tuple[float, int]]]
"""Texts -> negative log-likelihood of each, in nats, and the tokens it is of."""
Shift = Callable[[Sequence[tuple[str, str]], float], list[tuple[float, int]]]
"""(A sentence, the same with other words), limit -> how much less likely the second is, in nats, and tokens of the
first: as exact as it must be to tell on which side of so many nats a token of the first it is."""
Translate = Callable[[Sequence[str], str, str], list[str]]
"""Texts, from language, to language -> texts; "" where one could not be translated whole."""


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s"


def _quiet(text: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Helpers:
    """What augmentation needs of later rooms and of other machines."""

    answer: Answer | None = None
    score: Score | None = None
    translate: Translate | None = None
    say: Callable[[str], None] = _quiet
    ask: Answer | None = None
    """As `answer`, for short texts; `answer` itself where there is none."""
    shift: Shift | None = None
    """Reads no more of two sentences than their difference needs; made of `score` where there is none."""
    about: Callable[[float], str] = _seconds
    """Seconds for a reader."""
    watch: Watch = field(default_factory=Watch)


NOBODY = Helpers()


@dataclass
class Batch:
    """What one batch of parents gave, and why others gave nothing: reason -> how many."""

    records: list[Record] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
