"""The kinds of record: one row of the table a kind, and what every room does with a record follows from its row.

No other module asks for a kind by its name, but for those that make one (`reading/shapes.py`, from the columns of a
file) and those that learn one (a task, by its `kinds`). How the rows of a file look is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from tuneloop.base.records import Kind, Message, Record

Turns = tuple[Message, ...]
Encoding = Literal["answers", "alternatives", "text", "framed"]
"""Samples of a record. answers: every trained answer in its context. alternatives: one sample for each of the answers
that the record compares. text: all tokens, and the end token. framed: the text as the tokenizer frames it, no token of
which is trained."""


@dataclass(frozen=True, slots=True)
class RecordKind:
    """What the records of one kind hold, how they are encoded, compared, shown and exported."""

    dialogue: bool
    """The messages are the turns of a dialogue; otherwise each is a text of its own."""
    encoding: Encoding
    shape: str
    """Name of its own shape in `data export`."""
    columns: Callable[[Record], dict[str, Any]]
    """The row of a record in this shape: column -> text, number, or turns. It can be read back as the record."""
    label: Literal["", "name", "verdict"] = ""
    """`Record.label`: empty, the name of a class, or "good" and "bad"."""
    last_answer: bool = False
    """What is learned is about the last answer, trained or not, and nothing behind it may be left out."""
    worse: Callable[[Record], tuple[Turns, ...]] = lambda record: ()
    """Of alternatives: the answers in `Record.rejected`, best first."""
    names: tuple[str, ...] = ()
    """Of alternatives: what the card calls each of them (`card/page.part_facts`), best first."""
    pass_samples: int = 1
    """Samples that share a forward pass."""
    beside: frozenset[Kind] = frozenset()
    """The other kinds that may stand in one version with it."""

    @property
    def imitated(self) -> bool:
        """Whether the dialogue's trained answers are learned as they are (supervised tuning)."""
        return self.dialogue and not self.last_answer


def _messages(record: Record) -> dict[str, Any]:
    return {"messages": record.messages, "tools": record.tools}


def _judged(record: Record) -> dict[str, Any]:
    return {**_messages(record), "kto_tag": record.label == "good"}


def _preference(record: Record) -> dict[str, Any]:
    better = record.messages[len(record.prompt) :]
    return {"prompt": record.prompt, "chosen": better, "rejected": record.rejected, "tools": record.tools}


def _label(record: Record) -> dict[str, Any]:
    names = ("text_a", "text_b") if len(record.messages) > 1 else ("text",)
    return {**{name: m.content for name, m in zip(names, record.messages, strict=True)}, "label": record.label}


KINDS: dict[Kind, RecordKind] = {
    "chat": RecordKind(dialogue=True, encoding="answers", shape="messages", columns=_messages,
                       beside=frozenset({"text", "judged"})),
    "text": RecordKind(dialogue=False, encoding="text", shape="text",
                       columns=lambda record: {"text": record.messages[0].content}, beside=frozenset({"chat"})),
    "label": RecordKind(dialogue=False, encoding="framed", shape="label", columns=_label, label="name"),
    "preference": RecordKind(dialogue=True, encoding="alternatives", shape="preference", columns=_preference,
                             last_answer=True, worse=lambda record: (record.rejected,), names=("better", "worse"),
                             pass_samples=2),
    "judged": RecordKind(dialogue=True, encoding="answers", shape="kto", columns=_judged, label="verdict",
                         last_answer=True, pass_samples=2, beside=frozenset({"chat"})),
}  # fmt: skip
"""The one table of record kinds; `base/records.Kind` has their names for the recipe, which knows no code of theirs."""


def answers(record: Record) -> tuple[Turns, ...]:
    """The answers that a record compares, best first; () where its kind compares none.

    >>> ask, good, bad = Message("user", "q"), Message("assistant", "a"), Message("assistant", "b")
    >>> [turns[0].content for turns in answers(Record((ask, good), kind="preference", rejected=(bad,)))]
    ['a', 'b']
    """
    kind = KINDS[record.kind]
    if kind.encoding != "alternatives":
        return ()
    return (record.messages[len(record.prompt) :], *kind.worse(record))


def dialogues(record: Record) -> tuple[Turns, ...]:
    """The dialogue of a record, or the prompt with each of the answers that it compares."""
    if not (compared := answers(record)):
        return (record.messages,)
    prompt = record.prompt
    return tuple(prompt + turns for turns in compared)


def has_equal(alternatives: Iterable[Any]) -> bool:
    """Whether two of these answers are equal, so that there is nothing to prefer."""
    return any(one == other for one, other in combinations(alternatives, 2))


def mixable(kinds: Iterable[Kind]) -> bool:
    """Whether records of these kinds may stand in one version.

    >>> mixable(["chat", "text"]), mixable(["chat", "text", "judged"])
    (True, False)
    """
    return all(one in KINDS[other].beside for one, other in combinations(set(kinds), 2))
