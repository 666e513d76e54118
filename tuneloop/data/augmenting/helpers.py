"""Callbacks that augmentation needs (generation, scoring, translation), and the outcome of one batch."""

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
"""(Sentence, changed sentence) pairs, limit -> increase of the negative log-likelihood in nats, tokens of the first:
as exact as it must be to compare it with `limit` nats a token."""
Translate = Callable[[Sequence[str], str, str], list[str]]
"""Texts, source and target language -> translations; "" where one is incomplete."""


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s"


def _quiet(text: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Helpers:
    """Callbacks that augmentation needs: models of later rooms or of other machines, and output for a reader."""

    answer: Answer | None = None
    score: Score | None = None
    translate: Translate | None = None
    say: Callable[[str], None] = _quiet
    ask: Answer | None = None
    """As `answer`, for short texts; `answer` itself where there is none."""
    shift: Shift | None = None
    """Scores the difference of two sentences alone; by default computed from `score`."""
    about: Callable[[float], str] = _seconds
    """Seconds for a reader."""
    watch: Watch = field(default_factory=Watch)


NOBODY = Helpers()


@dataclass
class DerivedBatch:
    """The rows derived from one batch of parents, and the rejected parents: reason -> how many."""

    records: list[Record] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
