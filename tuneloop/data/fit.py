"""What does not fit the context: rejected, split, or cut from a named side. Never cut in silence.

Lengths are counted in the model's own tokens, of the row as it will be trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.data.ledger import Ledger
from tuneloop.data.samples import Samples
from tuneloop.data.sniff import shown
from tuneloop.errors import DataError
from tuneloop.records import LedgerEntry, Message, Record
from tuneloop.sections import PreparePart

Encode = Callable[[Sequence[Record]], Samples]
"""Records -> their samples, as they will be trained; `row` is the place of the record."""
Count = Callable[[Record], int]


def fit(records: list[Record], encode: Encode, part: PreparePart, ledger: Ledger) -> tuple[list[Record], Samples]:
    """The records that fit, in order, with their samples; every other one is in the ledger."""
    records, samples = _encoded(records, encode, ledger)
    lengths = longest(samples)
    lines: list[tuple[Record, int]] = []  # a record, and its place in `samples` or -1
    for at, (record, length) in enumerate(zip(records, lengths.tolist(), strict=True)):
        if length > part.max_length and part.too_long != "reject":
            lines += [(piece, -1) for piece in _fitted(record, length, encode, part, ledger)]
        elif reason := _unwanted(length, part):
            ledger.add(_entry("dropped", reason[0], record, reason[1]))
        else:
            lines.append((record, at))
    made = [record for record, at in lines if at < 0]
    if not made and len(lines) == len(records):
        return records, samples
    both = Samples.concatenate([samples, encode(made)]) if made else samples  # the second's rows count on
    fresh = iter(range(len(records), len(records) + len(made)))
    places = np.asarray([at if at >= 0 else next(fresh) for _, at in lines], np.int64)
    return [record for record, _ in lines], chosen(both, places)


def longest(samples: Samples) -> NDArray[np.int64]:
    """Tokens of each record's longest sample, int64 [records]."""
    out = np.zeros(samples.records, np.int64)
    np.maximum.at(out, samples.row, samples.lengths)
    return out


def chosen(samples: Samples, places: NDArray[np.integer[Any]]) -> Samples:
    """The samples of the records at `places`, in that order; `row` counts them anew."""
    by_row = np.argsort(samples.row, kind="stable")
    starts = np.searchsorted(samples.row[by_row], places, "left")
    ends = np.searchsorted(samples.row[by_row], places, "right")
    index = np.concatenate([np.zeros(0, np.int64), *(by_row[a:b] for a, b in zip(starts, ends, strict=True))])
    rows = np.repeat(np.arange(len(places), dtype=np.int32), ends - starts)
    return replace(samples.take(index), row=rows, records=len(places))


def _encoded(records: list[Record], encode: Encode, ledger: Ledger) -> tuple[list[Record], Samples]:
    """All samples at once; where that fails one by one, so that the fault stays with its record."""
    try:
        return records, encode(records)
    except DataError:
        pass
    good: list[Record] = []
    for record in records:
        try:
            encode([record])
            good.append(record)
        except DataError as error:
            detail = shown(error.facts.get("error", error.code))
            ledger.add(_entry("dropped", "template refuses", record, detail, step="template"))
    return good, encode(good) if good else Samples.of([])


def _entry(action: str, reason: str, record: Record, detail: str = "", *, step: str = "length") -> LedgerEntry:
    return LedgerEntry(action, step, reason, record.file, record.line, record.id, detail)  # type: ignore[arg-type]


def _unwanted(length: int, part: PreparePart) -> tuple[str, str] | None:
    """Why a row of so many tokens is not kept."""
    if length > part.max_length:
        return "too long", f"{length} / {part.max_length}"
    if part.tokens and not part.tokens[0] <= length <= part.tokens[1]:
        return "outside the token range", f"{length} / {part.tokens[0]}-{part.tokens[1]}"
    return None


def _fitted(record: Record, length: int, encode: Encode, part: PreparePart, ledger: Ledger) -> Iterator[Record]:
    """The pieces of a row that is too long, each short enough; the ledger has what became of it."""

    def count(one: Record) -> int:
        return int(longest(encode([one]))[0])

    limit, how = part.max_length, part.too_long
    if record.kind == "text" and how == "split":
        pieces, reason = _text_pieces(record, count, limit, part.overlap), "split by tokens"
    elif how in ("split", "turns") and record.kind in ("chat", "judged"):
        pieces, reason = _turn_pieces(record, count, limit), "split by turns"
    elif how in ("cut_left", "cut_right"):
        pieces, reason = _cut(record, count, limit, left=how == "cut_left"), f"cut on the {how[4:]}"
    else:
        pieces, reason = [], ""
    pieces = [piece for piece in pieces if not _unwanted(count(piece), part)]
    if not pieces:
        ledger.add(_entry("dropped", "too long", record, f"{length} / {limit}"))
        return
    ledger.add(_entry("changed", reason, record, f"{length} / {limit}, {len(pieces)}"))
    for n, piece in enumerate(pieces):
        if n:
            ledger.add(_entry("added", reason, piece, f"{n + 1} / {len(pieces)}"))
        yield piece


def exchanges(messages: Sequence[Message]) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """The system prompt, and the runs of turns that each begin with a user's.

    >>> system, rest = exchanges([Message("user", "a"), Message("assistant", "b"), Message("user", "c")])
    >>> len(rest)
    2
    """
    head = tuple(m for m in messages[:1] if m.role == "system")
    runs: list[list[Message]] = []
    for message in messages[len(head) :]:
        if message.role == "user" or not runs:
            runs.append([])
        runs[-1].append(message)
    return head, [tuple(run) for run in runs]


def _turn_pieces(record: Record, count: Count, limit: int) -> list[Record]:
    """As many whole exchanges a piece as fit, in order; none where a single exchange is too long by itself."""
    head, runs = exchanges(record.messages)
    pieces: list[Record] = []
    at = 0
    while at < len(runs):
        take = _most(1, len(runs) - at, lambda n, at=at: count(_joined(record, head, runs[at : at + n])) <= limit)  # type: ignore[misc]
        if not take:
            return []
        pieces.append(_joined(record, head, runs[at : at + take]))
        at += take
    return [replace(piece, parent=record.id) for piece in pieces if any(m.role == "assistant" for m in piece.messages)]


def _joined(record: Record, head: tuple[Message, ...], runs: Sequence[tuple[Message, ...]]) -> Record:
    return record.with_messages(head + tuple(m for run in runs for m in run))


def _most(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest n in low..high that fits, where smaller ones fit too; 0 where none does."""
    best = 0
    while low <= high:
        middle = (low + high) // 2
        if fits(middle):
            best, low = middle, middle + 1
        else:
            high = middle - 1
    return best


def _text_pieces(record: Record, count: Count, limit: int, overlap: int) -> list[Record]:
    """Windows of the text, each at most `limit` tokens; neighbours share about `overlap` tokens, cut at a blank or a
    sentence's end where one is near."""
    text = record.messages[0].content

    def piece(a: int, b: int) -> Record:
        return replace(record.with_messages((Message("assistant", text[a:b]),)), parent=record.id)

    pieces: list[Record] = []
    start = 0
    while start < len(text):
        take = _most(1, min(len(text) - start, 16 * limit), lambda n, at=start: count(piece(at, at + n)) <= limit)  # type: ignore[misc]
        if not take:
            return []
        end = start + take
        if end < len(text):
            end = _break(text, start + take // 2, end)
        pieces.append(piece(start, end))
        if end >= len(text):
            break
        shared = _most(1, end - start - 1, lambda n, at=end: count(piece(at - n, at)) <= overlap) if overlap else 0  # type: ignore[misc]
        start = end - min(shared, (end - start) // 2)
    return pieces


def _break(text: str, low: int, high: int) -> int:
    """The last place in low..high behind a line, a sentence or a word; `high` where there is none."""
    for marks in ("\n", "。！？!?", ".;；，,", " "):
        places = [text.rfind(mark, low, high) for mark in marks]
        if max(places) >= 0:
            return max(places) + 1
    return high


def _cut(record: Record, count: Count, limit: int, *, left: bool) -> list[Record]:
    """One piece: whole exchanges go first, then the text of the last one left; the end token always stays.

    On the left the oldest exchanges go and then the beginning of the question; on the right the newest, and then the
    end of the answer (of both answers of a preference pair).
    """
    if record.kind in ("text", "label"):
        return _shorter(record, 0, count, limit, left=left)
    head, runs = exchanges(record.messages)
    keep = _most(1, len(runs), lambda n: count(_joined(record, head, runs[-n:] if left else runs[:n])) <= limit)
    if keep:
        return [_joined(record, head, runs[-keep:] if left else runs[:keep])]
    alone = _joined(record, head, runs[-1:] if left else runs[:1])
    turns = alone.messages
    answers = [n for n, m in enumerate(turns) if m.role == "assistant"]
    if not answers or turns[answers[-1]].tool_calls:
        return []
    return _shorter(alone, len(head) if left else answers[-1], count, limit, left=left)


def _shorter(record: Record, at: int, count: Count, limit: int, *, left: bool) -> list[Record]:
    """The record with as much of message `at` as fits; none where nothing of it would be left."""

    def part(message: Message, n: int) -> Message:
        return replace(message, content=message.content[len(message.content) - n :] if left else message.content[:n])

    def cut(n: int) -> Record:
        messages = (*record.messages[:at], part(record.messages[at], n), *record.messages[at + 1 :])
        rejected = record.rejected if left else tuple(part(m, n) for m in record.rejected)
        return replace(record, messages=messages, rejected=rejected)

    size = max(len(m.content) for m in (record.messages[at], *([] if left else record.rejected)))
    kept = _most(1, size, lambda n: count(cut(n)) <= limit)
    return [cut(kept)] if kept else []
