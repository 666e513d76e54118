"""What does not fit the context: rejected, split, or cut from a named side. Never cut in silence.

Lengths are counted in the model's own tokens, of the row as it will be trained. A row of so many characters that it
must be too long is never tokenised whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.base.errors import DataError
from tuneloop.base.files import printable
from tuneloop.base.records import LedgerEntry, Message, Record
from tuneloop.data.kinds import KINDS, answers, has_equal
from tuneloop.data.ledger import Action, Ledger
from tuneloop.data.tokens.answers import spoken
from tuneloop.data.tokens.samples import SPELLED, Sequences, Unsaid
from tuneloop.recipe.schema import PreparePart

Encode = Callable[[Sequence[Record]], Sequences]
"""Records -> their samples, as they will be trained; `row` is the place of the record."""
Count = Callable[[Record], int]
ANY = 1 << 40
"""No limit."""
LONGEST_TOKEN = 256
"""Characters that a token has at most: the longest of the known vocabularies are runs of blanks."""
MOST_CHARACTERS = 8_000_000
"""Characters of a row that is tokenised at all: some millions of tokens, and about 250 bytes of memory for each."""


def fit_lengths(
    records: Sequence[Record], encode: Encode, part: PreparePart, ledger: Ledger
) -> tuple[list[Record], list[int], Sequences]:
    """The records that fit, which of `records` each was made from, and their samples.

    They keep their order. What became of every other one is in the ledger.
    """
    limit = most_tokens(part)
    small = [at for at, record in enumerate(records) if _least(record) <= limit]
    places, samples = _encoded([records[at] for at in small], encode, ledger)
    known = {
        small[place]: (n, length)
        for n, (place, length) in enumerate(zip(places, longest(samples).tolist(), strict=True))
    }
    unsaid, spelled = by_row(samples.unsaid), by_row(samples.unsaid, spelled=True)
    large = set(range(len(records))) - set(small)
    lines: list[tuple[Record, int, int]] = []  # a record, its origin, and its place in `samples` or -1
    for parent in sorted(large | known.keys()):
        record = records[parent]
        at, length = known.get(parent, (-1, _least(record)))
        if not _is_trained(record, unsaid.get(at, ()), length, ledger):
            continue
        _mark_spelled(record, spelled.get(at, ()), ledger)
        if length > limit and part.too_long != "reject":
            lines += [(piece, parent, -1) for piece in _fitted(record, length, encode, part, ledger)]
        elif reason := _unwanted(length, part, large=parent in large):
            ledger.add(_ledger_entry("dropped", reason[0], record, reason[1]))
        else:
            lines.append((record, parent, at))
    unencoded = [record for record, _, at in lines if at < 0]
    if not unencoded and len(lines) == samples.records:
        return [record for record, _, _ in lines], [parent for _, parent, _ in lines], samples
    pieces = encode(unencoded) if unencoded else Sequences.of([])
    piece_lengths, unsaid = longest(pieces).tolist(), by_row(pieces.unsaid)
    parents = [parent for _, parent, at in lines if at < 0]
    for n, ones in by_row(pieces.unsaid, spelled=True).items():
        if parents[n] in large:  # it was not tokenised whole
            _mark_spelled(unencoded[n], ones, ledger)
    fine = iter(
        [_is_trained(record, unsaid.get(n, ()), piece_lengths[n], ledger) for n, record in enumerate(unencoded)]
    )
    fresh = iter(range(samples.records, samples.records + len(unencoded)))  # the pieces' rows count on
    places = [at if at >= 0 else next(fresh) for _, _, at in lines]
    left = [n for n, (_, _, at) in enumerate(lines) if at >= 0 or next(fine)]
    all_samples = chosen(Sequences.concatenate([samples, pieces]), np.asarray([places[n] for n in left], np.int64))
    return [lines[n][0] for n in left], [lines[n][1] for n in left], all_samples


def most_tokens(part: PreparePart) -> int:
    """The limit of a row in tokens; where the recipe leaves it to the rows, whatever they have."""
    return part.max_length if isinstance(part.max_length, int) else ANY


def _least(record: Record) -> int:
    """Tokens that a row has at least, by its characters; more than any limit where no memory would hold it."""
    size = sum(len(m.content) + len(m.reasoning) for m in record.messages)
    if record.rejected:
        size = max(size, sum(len(m.content) + len(m.reasoning) for m in record.rejected))
    return ANY + 1 if size > MOST_CHARACTERS else size // LONGEST_TOKEN


def by_row(unsaid: Iterable[Unsaid], *, spelled: bool = False) -> dict[int, list[Unsaid]]:
    """What no sample says, by the row that it is of; with `spelled` the control tokens that its texts spell."""
    out: dict[int, list[Unsaid]] = {}
    for one in unsaid:
        if (one.what == SPELLED) == spelled:
            out.setdefault(one.row, []).append(one)
    return out


def _mark_spelled(record: Record, spelled: Sequence[Unsaid], ledger: Ledger) -> None:
    """Tell which control tokens a row's texts spell: they are read as text, though they may have been meant."""
    if tokens := dict.fromkeys(one.fuller for one in spelled):
        ledger.add(_ledger_entry("marked", "control token spelled", record, ", ".join(tokens), step="control_tokens"))


UNSAID = {
    "call": "call not written", "thought": "thought not written", "alone": "thought without an answer",
    "empty": "answer without words",
}  # fmt: skip
"""What of an answer that is not trained -> the ledger's reason."""


def _is_trained(record: Record, unsaid: Sequence[Unsaid], length: int, ledger: Ledger) -> bool:
    """Whether anything of a row is trained; its answers that are not stand in the ledger, each by what it carries."""
    dropped = not length and KINDS[record.kind].encoding != "text"
    if dropped and not unsaid:
        ledger.add(_ledger_entry("dropped", "no answer", record, step="template"))
    for n, one in enumerate(unsaid):
        detail = f"{one.turn} / {len(record.messages)}" + (f", model.template: {one.fuller}" if one.fuller else "")
        action: Action = "dropped" if dropped and not n else "marked"
        ledger.add(_ledger_entry(action, UNSAID[one.what], record, detail, step="template"))
    return not dropped


def longest(samples: Sequences) -> NDArray[np.int64]:
    """Tokens of each record's longest sample, int64 [records]."""
    out = np.zeros(samples.records, np.int64)
    np.maximum.at(out, samples.row, samples.lengths)
    return out


def chosen(samples: Sequences, places: NDArray[np.integer[Any]]) -> Sequences:
    """The samples of the records at `places`, in that order; `row` counts them anew."""
    by_row = np.argsort(samples.row, kind="stable")
    starts = np.searchsorted(samples.row[by_row], places, "left")
    ends = np.searchsorted(samples.row[by_row], places, "right")
    index = np.concatenate([np.zeros(0, np.int64), *(by_row[a:b] for a, b in zip(starts, ends, strict=True))])
    rows = np.repeat(np.arange(len(places), dtype=np.int32), ends - starts)
    return replace(samples.take(index), row=rows, records=len(places))


def _encoded(records: Sequence[Record], encode: Encode, ledger: Ledger, first: int = 0) -> tuple[list[int], Sequences]:
    """The places, from `first` on, of those that can be encoded, and their samples.

    Where all at once fail, each half is tried by itself, so that the fault stays with its record.
    """
    try:
        return list(range(first, first + len(records))), encode(records) if records else Sequences.of([])
    except DataError as error:
        if len(records) == 1:
            detail = printable(error.facts.get("error", error.code))
            ledger.add(_ledger_entry("dropped", "template refuses", records[0], detail, step="template"))
            return [], Sequences.of([])
    half = len(records) // 2
    one, left = _encoded(records[:half], encode, ledger, first)
    two, right = _encoded(records[half:], encode, ledger, first + half)
    return one + two, Sequences.concatenate([left, right])


def _ledger_entry(
    action: Action, reason: str, record: Record, detail: str = "", *, step: str = "length"
) -> LedgerEntry:
    return LedgerEntry(action, step, reason, record.file, record.line, record.id, detail)


def _unwanted(length: int, part: PreparePart, *, large: bool = False) -> tuple[str, str] | None:
    """Why a row of so many tokens is not kept; of a `large` one the number is only the least."""
    if large:
        return "too large", "" if length > ANY else f"≥ {length} / {part.max_length}"
    if length > most_tokens(part):
        return "too long", f"{length} / {part.max_length}"
    if part.tokens and not part.tokens[0] <= length <= part.tokens[1]:
        return "outside the token range", f"{length} / {part.tokens[0]}-{part.tokens[1]}"
    return None


def _fitted(record: Record, length: int, encode: Encode, part: PreparePart, ledger: Ledger) -> Iterator[Record]:
    """The pieces of a row that is too long, each short enough; the ledger has what became of it."""
    limit, how, kind = most_tokens(part), part.too_long, KINDS[record.kind]

    def count(one: Record) -> int:
        if (least := _least(one)) > limit:
            return least
        try:
            return int(longest(encode([one]))[0])
        except DataError:  # what the template refuses is no piece
            return limit + 1

    if kind.encoding == "text" and how == "split":
        pieces, reason = _text_pieces(record, count, limit, part.overlap), "split by tokens"
    elif kind.imitated and how == "split":
        pieces, reason = _turn_pieces(record, count, encode, limit), "split by turns"
    elif kind.dialogue and how == "turns":
        pieces, reason = _newest(record, count, limit), "oldest turns left out"
    elif how in ("cut_left", "cut_right"):
        pieces, reason = _cut(record, count, limit, left=how == "cut_left"), f"cut on the {how[4:]}"
    else:  # a label, a verdict or a pair of answers is about the whole
        pieces, reason = [], ""
    long = f"{length} / {limit}" if _least(record) <= limit else f"≥ {length} / {limit}"
    if not pieces:
        ledger.add(_ledger_entry("dropped", "too long", record, long))
        return
    left_out = len(record.messages) - len(pieces[0].messages) if how == "turns" else 0
    ledger.add(_ledger_entry("changed", reason, record, f"{long}, {-left_out if left_out else len(pieces)}"))
    for n, piece in enumerate(pieces):
        if n:
            ledger.add(_ledger_entry("added", reason, piece, f"{n + 1} / {len(pieces)}"))
        length = count(piece)
        if unwanted := (_unwanted(length, part) if length else None) or _taught_nothing(piece):
            ledger.add(_ledger_entry("dropped", unwanted[0], piece, unwanted[1]))
        else:
            yield piece


def _taught_nothing(piece: Record) -> tuple[str, str] | None:
    if has_equal(answers(piece)):
        return "no difference", ""
    learnt = not KINDS[piece.kind].dialogue or any(m.role == "assistant" and m.trained for m in piece.messages)
    return None if learnt else ("no answer", "")


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


def _turn_pieces(record: Record, count: Count, encode: Encode, limit: int) -> list[Record]:
    """As many whole exchanges a piece as fit, in order; none where a single exchange is too long by itself."""
    head, runs = exchanges(record.messages)
    each = [_joined(record, head, [run]) for run in runs]
    if any(_least(one) > limit for one in each):
        return []
    try:  # each exchange alone, all at once: what is too long alone needs no search
        if _least(record) <= limit and int(longest(encode(each)).max()) > limit:
            return []
    except DataError:
        pass
    pieces: list[Record] = []
    at = 0
    while at < len(runs):
        take = _most(1, len(runs) - at, lambda n, at=at: count(_joined(record, head, runs[at : at + n])) <= limit)  # type: ignore[misc]
        if not take:
            return []
        pieces.append(_joined(record, head, runs[at : at + take]))
        at += take
    return [replace(piece, parent=record.id) for piece in pieces]


def _newest(record: Record, count: Count, limit: int) -> list[Record]:
    """The system prompt and as many of the newest exchanges as fit; none where the newest alone is too long."""
    head, runs = exchanges(record.messages)
    keep = _most(1, len(runs), lambda n: count(_joined(record, head, runs[-n:])) <= limit)
    return [_joined(record, head, runs[-keep:])] if keep else []


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
    text, identity = record.messages[0].content, record.id

    def piece(a: int, b: int) -> Record:
        return replace(record.with_messages((Message("assistant", text[a:b], cut=b < len(text)),)), parent=identity)

    pieces: list[Record] = []
    start = 0
    while start < len(text):
        take = _most(1, min(len(text) - start, 16 * limit), lambda n, at=start: count(piece(at, at + n)) <= limit)  # type: ignore[misc]
        if not take:
            return []
        end = start + take
        if end < len(text):
            near = _break(text, start + take // 2, end)
            end = near if count(piece(start, near)) <= limit else end  # a shorter text may have more tokens
        pieces.append(piece(start, end))
        if end >= len(text):
            break
        shared = _most(1, end - start - 1, lambda n, at=end: count(piece(at - n, at)) <= overlap) if overlap else 0  # type: ignore[misc]
        start = end - min(shared, (end - start) // 2)
    return pieces


def _break(text: str, low: int, high: int) -> int:
    """The last place in low..high behind a line, a sentence or a word; `high` where there is none."""
    for marks in ("\n", "。！？!?", ".;；，,", " "):
        places = [text.rfind(delimiter, low, high) for delimiter in marks]
        if max(places) >= 0:
            return max(places) + 1
    return high


def _cut(record: Record, count: Count, limit: int, *, left: bool) -> list[Record]:
    """One piece: whole exchanges go first, then the text of the last one left; the end token always stays.

    On the left the oldest exchanges go and then the beginning of the question; on the right the newest, and then the
    end of the answer. A verdict and a pair of answers are about the last answer: there it is cut (on the right both of
    a pair), and no exchange behind the others goes.
    """
    kind = KINDS[record.kind]
    if not kind.dialogue:
        return _shorter(record, 0, count, limit, left=left)
    head, runs = exchanges(record.messages)
    if left and (pieces := _newest(record, count, limit)):
        return pieces
    if not left and kind.imitated:
        keep = _most(1, len(runs), lambda n: count(_joined(record, head, runs[:n])) <= limit)
        if keep:
            return [_joined(record, head, runs[:keep])]
    if left or kind.imitated:
        record = _joined(record, head, runs[-1:] if left else runs[:1])
    turns = record.messages
    last = max((n for n, m in enumerate(turns) if m.role == "assistant"), default=-1)
    if last < 0 or turns[last].tool_calls:
        return []
    return _shorter(record, len(head) if left else last, count, limit, left=left)


def _answer_at(message: Message) -> int:
    """Where the answer begins behind a thought that stands in the text.

    >>> _answer_at(Message("assistant", "<think>hm</think> Yes")), _answer_at(Message("assistant", "Yes"))
    (18, 0)
    """
    return len(message.content) - len(spoken(message).lstrip())


def _shorter(record: Record, at: int, count: Count, limit: int, *, left: bool) -> list[Record]:
    """The record with as much of message `at` as fits, on the right of the last rejected one too; none where nothing
    of it would be left. What is cut on the right has no end any more, and a thought is never cut."""
    also = record.rejected[-1:] if not left else ()

    def part(message: Message, n: int) -> Message:
        if n >= len(message.content):
            return message
        if left:
            return replace(message, content=message.content[len(message.content) - n :])
        return replace(message, content=message.content[:n], cut=True)

    def cut(n: int) -> Record:
        messages = (*record.messages[:at], part(record.messages[at], n), *record.messages[at + 1 :])
        rejected = (*record.rejected[: len(record.rejected) - len(also)], *(part(m, n) for m in also))
        return replace(record, messages=messages, rejected=rejected)

    shortened = (record.messages[at], *also)
    least = 1 if left or not KINDS[record.kind].dialogue else max(_answer_at(m) for m in shortened) + 1
    size = min(max(len(m.content) for m in shortened), limit * LONGEST_TOKEN)
    characters = _most(least, size, lambda n: count(cut(n)) <= limit)
    return [cut(characters)] if characters else []
