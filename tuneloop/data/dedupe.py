"""Exact repetitions go, the first one stays. It runs before the split, so nothing held out is also trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from tuneloop.records import LedgerEntry, Record


def squeezed(text: str) -> str:
    """What two texts have in common that differ in case and blanks alone.

    >>> squeezed(" Hello\\n  World ")
    'hello world'
    """
    return " ".join(text.casefold().split())


def key(record: Record) -> bytes:
    """Digest of the dialogue, its tools included, with every text squeezed."""
    turns = [(m.role, squeezed(m.content), squeezed(m.reasoning), m.tool_calls) for m in record.messages]
    body = json.dumps([turns, record.tools], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).digest()


def dedupe(records: Iterable[Record]) -> tuple[list[Record], list[LedgerEntry]]:
    """The records that were not there before, and an entry for each of the others that names the first one."""
    first: dict[bytes, Record] = {}
    kept: list[Record] = []
    entries: list[LedgerEntry] = []
    for record in records:
        original = first.setdefault(key(record), record)
        if original is record:
            kept.append(record)
        else:
            where = f"{original.file}:{original.line}"
            entries.append(LedgerEntry("dropped", "dedupe", "repeated", record.file, record.line, record.id, where))
    return kept, entries
