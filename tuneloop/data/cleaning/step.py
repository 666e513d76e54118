"""The type of a cleaning step: Record -> (record or None, ledger entry or None); and how steps build their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tuneloop.base.records import LedgerEntry, Message, Record

Result = tuple[Record | None, LedgerEntry | None]
Step = Callable[[Record], Result]


def dropped(record: Record, step: str, reason: str, detail: str = "") -> Result:
    """The result for a dropped record."""
    return None, LedgerEntry("dropped", step, reason, record.file, record.line, record.id, detail)


def changed(old: Record, new: Record, step: str, reason: str, detail: str = "") -> Result:
    """The result for a changed record; the entry has its old id."""
    return new, LedgerEntry("changed", step, reason, old.file, old.line, old.id, detail)


def marked(record: Record, step: str, reason: str, detail: str = "") -> Result:
    """The result for an unchanged record that the ledger marks."""
    return record, LedgerEntry("marked", step, reason, record.file, record.line, record.id, detail)


def judged(record: Record, drop: bool, step: str, reason: str, detail: str = "") -> Result:
    """The result for a record that is dropped, or else marked."""
    return (dropped if drop else marked)(record, step, reason, detail)


def all_messages(record: Record) -> Iterator[Message]:
    """The turns of the record and those that a preference pair rejects."""
    yield from record.messages
    yield from record.rejected


def mapped(record: Record, change: Callable[[Message], Message]) -> Record:
    """The record with every message changed; the very same record where `change` gives the very same messages."""
    messages = tuple(map(change, record.messages))
    rejected = tuple(map(change, record.rejected)) if record.rejected else ()
    if all(a is b for a, b in zip(messages + rejected, record.messages + record.rejected, strict=True)):
        return record
    return replace(record, messages=messages, rejected=rejected)


def each_text(change: Callable[[str], str]) -> Callable[[Message], Message]:
    """A change of texts as a change of messages: content and reasoning; tool calls stay as they are."""

    def of_message(message: Message) -> Message:
        content, reasoning = change(message.content), change(message.reasoning) if message.reasoning else ""
        if content == message.content and reasoning == message.reasoning:
            return message
        return replace(message, content=content, reasoning=reasoning)

    return of_message
