"""Deduplication: of equal rows, and on request of near duplicates, the first one stays.

It runs before the split, so that no held-out row is also trained on.

Rows with the same text and another label are no duplicates: which label is right is unknown, so they stay, and each
later one is marked with the first.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from tuneloop.base.records import LedgerEntry, Message, Record
from tuneloop.data.dedupe.near import I32, Pairs, Sketches, TextOf, contaminated, near_pairs, representative
from tuneloop.data.dedupe.shingles import jaccard
from tuneloop.data.kinds import KINDS, answers

SourceLine = tuple[str, int]
"""File and line."""
BATCH = 4096
"""Records that are sketched in one batch."""


def squeezed(text: str) -> str:
    """The text normalised for comparison: case folded, runs of blanks as one space.

    >>> squeezed(" Hello\\n  World ")
    'hello world'
    """
    return " ".join(text.casefold().split())


def key(record: Record) -> bytes:
    """16 bytes of all that a record teaches, tools and label included, to the last blank: `if x:` indented otherwise is
    another program, and "US" is not "us"."""
    return _digest([_turns(record.messages), record.tools, record.kind, record.label, _turns(record.rejected)])


def text_key(record: Record) -> bytes | None:
    """The same without the label, or with the two answers of a preference in either order; None for other kinds."""
    if KINDS[record.kind].label:
        return _digest([_turns(record.messages), record.tools, record.kind])
    if compared := answers(record):
        unordered = sorted(map(_turns, compared), key=lambda turns: _digest([turns]))
        return _digest([_turns(record.prompt), record.tools, unordered])
    return None


def _turns(messages: Iterable[Message]) -> list[list[Any]]:
    return [[m.role, m.content, m.reasoning, m.tool_calls, *([] if m.trained else ["context"])] for m in messages]


def _digest(parts: list[Any]) -> bytes:
    body = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).digest()[:16]


class Seen:
    """A map from each key to its first record's place, about 50 bytes a row: an open hash table of row numbers."""

    def __init__(self, of: Callable[[Record], bytes | None] = key) -> None:
        self._of = of
        self._keys = bytearray()
        self._file_of, self._lines = array("I"), array("q")
        self._files: list[str] = []
        self._number_of: dict[str, int] = {}
        self._table = array("I", bytes(4 * 1024))
        """Row number + 1, or 0; at most two thirds full."""

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, record: Record) -> SourceLine | None:
        """The place of the first record with this key, or None where this is the first."""
        digest = self._of(record)
        if digest is None:
            return None
        slot = self._slot(digest)
        if row := self._table[slot]:
            return self._files[self._file_of[row - 1]], self._lines[row - 1]
        self._table[slot] = len(self._lines) + 1
        self._keys += digest
        if record.file not in self._number_of:
            self._number_of[record.file] = len(self._files)
            self._files.append(record.file)
        self._file_of.append(self._number_of[record.file])
        self._lines.append(record.line)
        if 3 * len(self._lines) > 2 * len(self._table):
            self._enlarge()
        return None

    def _slot(self, digest: bytes | bytearray) -> int:
        """Of this key, or the empty one where it belongs (linear probing)."""
        mask = len(self._table) - 1
        slot = int.from_bytes(digest[:8], "little") & mask
        while (row := self._table[slot]) and self._keys[16 * row - 16 : 16 * row] != digest:
            slot = (slot + 1) & mask
        return slot

    def _enlarge(self) -> None:
        self._table = array("I", bytes(8 * len(self._table)))
        for row in range(len(self._lines)):
            self._table[self._slot(self._keys[16 * row : 16 * row + 16])] = row + 1


class Repeats:
    """Exact duplicates in a stream of records."""

    def __init__(self) -> None:
        self._rows, self._texts = Seen(key), Seen(text_key)

    def ledger_entry(self, record: Record) -> LedgerEntry | None:
        """The entry of a duplicate ("dropped") or of a known text with another label ("marked"); None for a new row."""
        first = self._rows.add(record)
        other = self._texts.add(record)
        if first:
            where = f"{first[0]}:{first[1]}"
            return LedgerEntry("dropped", "dedupe", "repeated", record.file, record.line, record.id, where)
        return _conflict(record, f"{other[0]}:{other[1]}") if other else None


def _conflict(record: Record, where: str) -> LedgerEntry:
    return LedgerEntry("marked", "dedupe", "conflicting label", record.file, record.line, record.id, where)


def dedupe(records: Iterable[Record], near: float | None = None) -> tuple[list[Record], list[LedgerEntry]]:
    """The unique records, and an entry for each duplicate that names its first record.

    With `near`, a Jaccard similarity, records that are at least so similar to one that is kept go too.
    """
    repeats = Repeats()
    unique: list[Record] = []
    entries: list[LedgerEntry] = []
    for record in records:
        ledger_entry = repeats.ledger_entry(record)
        if ledger_entry:
            entries.append(ledger_entry)
        if not ledger_entry or ledger_entry.action != "dropped":
            unique.append(record)
    if near is not None:
        compared = Compared()
        compared.add(unique)
        first, more = near_repeats(unique, compared.pairs(_texts_of(unique), near), near)
        unique = [record for row, record in enumerate(unique) if first[row] == row]
        entries += more
    return unique, entries


def dialogue_text(record: Record) -> str:
    """The text by which near duplicates are compared: all turns but the system prompt, reasoning, calls, both answers.

    Labels, tools and the system prompt are compared apart, see `near_repeats`.
    """
    parts: list[str] = []
    for m in (*record.messages, *record.rejected):
        if m.role != "system":
            calls = [json.dumps(call, ensure_ascii=False, sort_keys=True) for call in m.tool_calls]
            parts += [part for part in (m.reasoning, m.content, *calls) if part]
    return "\n".join(parts)


class Compared:
    """MinHash sketches of a stream of records; 150 bytes a record."""

    def __init__(self) -> None:
        self.sketches = Sketches()
        self._labels: dict[tuple[str, str], int] = {}
        self._label_of = array("i")

    def add(self, records: Sequence[Record], texts: Sequence[str] | None = None) -> None:
        """`texts` are the records' `dialogue_text`, where they are known."""
        for at in range(0, len(records), BATCH):
            batch = records[at : at + BATCH]
            self.sketches.add(texts[at : at + BATCH] if texts else [dialogue_text(record) for record in batch])
            self._label_of.extend(self._labels.setdefault((r.kind, r.label), len(self._labels)) for r in batch)

    def pairs(self, text_of: TextOf, threshold: float) -> Pairs:
        """Near-duplicate pairs of the added records; `text_of` reads texts again by row number.

        Equal texts with different labels are pairs like any other; `groups` of them all keeps a split clean.
        """
        return near_pairs(self.sketches, text_of, threshold, np.frombuffer(self._label_of, np.int32))


def _texts_of(records: Sequence[Record]) -> TextOf:
    return lambda rows: [dialogue_text(records[row]) for row in rows.tolist()]


def near_repeats(records: Sequence[Record], pairs: Pairs, threshold: float) -> tuple[I32, list[LedgerEntry]]:
    """The kept row that each row nearly repeats, or itself, int32 [records]; and the ledger entries.

    A near pair is a repetition if also its system prompts are near, and its tools and labels equal. With different
    labels, or with the better and the worse answer exchanged, both stay and the later one is marked.
    """
    alike = np.zeros(len(pairs), bool)
    conflicts: dict[int, int] = {}
    for at, (i, j) in enumerate(zip(pairs.i.tolist(), pairs.j.tolist(), strict=True)):
        relation = _relation(records[i], records[j], threshold)
        alike[at] = relation == "repeated"
        if relation == "conflicting":
            conflicts.setdefault(j, i)
    same = Pairs(pairs.i[alike], pairs.j[alike], pairs.jaccard[alike])
    first = representative(same, len(records))
    entries = list(_near_entries(records, same, first, conflicts))
    return first, entries


def _near_entries(
    records: Sequence[Record], same: Pairs, first: I32, conflicts: dict[int, int]
) -> Iterator[LedgerEntry]:
    similar = {(i, j): s for i, j, s in zip(same.i.tolist(), same.j.tolist(), same.jaccard.tolist(), strict=True)}
    gone = set(np.flatnonzero(first != np.arange(len(first))).tolist())
    for row in sorted(gone | conflicts.keys()):
        record = records[row]
        original = records[int(first[row]) if row in gone else conflicts[row]]
        where = f"{original.file}:{original.line}"
        if row in gone:
            # A row equal to one that went is as similar to the kept row as that one; only the pair's number is another.
            share = similar.get((int(first[row]), row)) or jaccard(dialogue_text(original), dialogue_text(record))
            where += f" {share:.2f}"
            yield LedgerEntry("dropped", "dedupe", "nearly repeated", record.file, record.line, record.id, where)
        elif text_key(record) != text_key(original):  # equal texts were named by the exact step
            yield _conflict(record, where)


def _relation(a: Record, b: Record, threshold: float) -> Literal["repeated", "conflicting", "other"]:
    if a.kind != b.kind:
        return "other"
    if a.label != b.label or (answers(a) and _exchanged(a, b)):
        return "conflicting"
    one, two = _system(a), _system(b)
    near = one == two or jaccard(one, two) >= threshold
    return "repeated" if near and a.tools == b.tools else "other"


def _exchanged(a: Record, b: Record) -> bool:
    """Whether a's better answer is more like b's worse one than like b's better one."""
    better, (same, *worse) = _joined(answers(a)[0]), map(_joined, answers(b))
    return max(jaccard(better, other) for other in worse) > jaccard(better, same)


def _joined(messages: Iterable[Message]) -> str:
    return "\n".join(m.content for m in messages)


def _system(record: Record) -> str:
    return _joined(m for m in record.messages if m.role == "system")


def contamination(
    train: Sequence[Record], test: Sequence[Record], threshold: float, compared: tuple[Compared, Compared] | None = None
) -> list[LedgerEntry]:
    """An entry for each test row that training has seen, nearly: "file:line similarity" of the most similar row there.

    `compared` are the sketches of both, where they were taken before.
    """
    if compared is None:
        compared = Compared(), Compared()
        compared[0].add(train)
        compared[1].add(test)
    pairs = contaminated(compared[0].sketches, compared[1].sketches, _texts_of(train), _texts_of(test), threshold)
    entries = []
    for i, j, share in zip(pairs.i.tolist(), pairs.j.tolist(), pairs.jaccard.tolist(), strict=True):
        row, twin = test[i], train[j]
        detail = f"{twin.file}:{twin.line} {share:.2f}"
        entries.append(LedgerEntry("marked", "dedupe", "also in training", row.file, row.line, row.id, detail))
    return entries
