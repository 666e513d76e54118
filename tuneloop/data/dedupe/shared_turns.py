"""Word-for-word overlap of rows: equal questions, and shared exchanges (a user's turn with its answers).

Three relations keep rows on one side of a split. One contains the other, however short it is: histories that grow row
by row, in turns or flattened into one field (`contained.py`). They share a run of exchanges of some length: sliding
windows over one long dialogue. They share a short exchange, and one of them has no exchange of its own. Of a plain
text, a line counts as an exchange.

A set phrase (a greeting, a farewell), which has many different exchanges before or behind it, relates no rows; a row
that is nothing else is trained on, never held out, since others contain it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuneloop.base.records import Record
from tuneloop.data.dedupe.contained import Containment, SharedRuns
from tuneloop.data.dedupe.exact import squeezed
from tuneloop.data.dedupe.near import Pairs, groups
from tuneloop.data.dedupe.shingles import I64, U64, mixed
from tuneloop.data.kinds import KINDS

QUESTION = 12
"""Fewest characters of a question by which rows are grouped."""
RUN = 64
"""Fewest characters of a shared run of exchanges by which rows are grouped."""
_LONGEST = 64
"""Most exchanges of a run."""
CHAIN = 0.02
"""Largest share of all rows in one group of weak relations; a longer chain leads from one subject to the next."""
FEW = 16
"""Rows that one group may have in any case."""
BRANCHES = 8
"""Most different exchanges before or behind a run; with more it counts as a set phrase."""
_STEPS = (1, 2, 4, 8, 16, 32)
"""Distances, in exchanges, at which the branches of a run are counted."""
_CHUNK = 1 << 16
"""Exchanges of one block."""
_PRIME = np.uint64(0x9E3779B97F4A7C15)


def question(record: Record) -> str:
    """The normalised prompt: all text before the first trained answer but the system prompt; of a labelled row its
    text; "" where it is missing or too short to tell rows apart.

    >>> from tuneloop.base.records import Message
    >>> turns = (("system", "Be brief."), ("user", "How far is the Moon?"), ("assistant", "Far."))
    >>> question(Record(tuple(Message(role, text) for role, text in turns)))
    'how far is the moon?'
    """
    if KINDS[record.kind].encoding == "text":
        return ""
    parts: list[str] = []
    for message in record.messages:
        if message.role == "assistant" and message.trained:
            break
        if message.role != "system":
            parts.append(message.content)
    text = squeezed("\n".join(parts))
    return text if len(text) >= QUESTION else ""


def exchanges(record: Record) -> Iterator[str]:
    """Each user's turn with the answers and tool results that follow it, without thoughts; of a text its lines."""
    if KINDS[record.kind].encoding == "text":
        yield from filter(None, map(str.strip, record.messages[0].content.split("\n")))
        return
    parts: list[str] = []
    for message in record.messages:
        if message.role == "user" and parts:
            yield "\n".join(parts)
            parts = []
        if message.role != "system":
            parts += [message.content.strip(), *(str(call.get("function")) for call in message.tool_calls)]
    yield "\n".join(parts)


@dataclass(frozen=True)
class Shared:
    """Links (i, j) of related rows, int64 [links]; and rows of set phrases, which others contain."""

    i: I64
    j: I64
    phrases: I64


class SharedTurns:
    """Hashes of the rows' questions and exchanges in the order of `add`: 8 bytes a row and 12 an exchange."""

    def __init__(self) -> None:
        self._questions, self._counts = array("q"), array("i")
        self._exchanges, self._sizes = array("q"), array("i")

    def add(self, records: Sequence[Record]) -> None:
        for record in records:
            self._questions.append(hash(question(record)))
            own = list(exchanges(record)) if KINDS[record.kind].encoding != "framed" else []
            self._counts.append(len(own))
            self._exchanges.extend(map(hash, own))
            self._sizes.extend(map(len, own))

    def questions(self, but: I64 | None = None) -> tuple[I64, I64]:
        """Links between rows with the same question, `but` these rows: (first row, other row)."""
        keys = np.frombuffer(self._questions, np.int64)
        wanted = keys != 0
        if but is not None:
            wanted[but] = False
        rows = np.flatnonzero(wanted)
        return _with_first(keys[rows].view(np.uint64), rows)

    def turns(self, texts: Containment | None = None) -> Shared:
        """Rows that share exchanges or contain each other (see the module); `texts` are those contained as texts."""
        counts = np.frombuffer(self._counts, np.int32)
        if not len(counts):
            return Shared(*(np.zeros(0, np.int64),) * 3)
        i, j, phrases = _holding([self.held(), *([texts] if texts else [])], len(counts))
        row = np.repeat(np.arange(len(counts)), counts)
        key = np.frombuffer(self._exchanges, np.int64).view(np.uint64)
        if len(key):
            one, other = self._long(key, row)
            i, j = np.concatenate((i, one)), np.concatenate((j, other))
            one, other = _short(key, row, phrases)
            bounded = ~_large(np.concatenate((i, one)), np.concatenate((j, other)), len(counts))[one]
            i, j = np.concatenate((i, one[bounded])), np.concatenate((j, other[bounded]))
        apart = i != j
        return Shared(i[apart], j[apart], np.flatnonzero(phrases))

    def _long(self, key: U64, row: I64) -> tuple[I64, I64]:
        """Links between rows that share a run of exchanges of `RUN` characters."""
        run, end, complete = _runs(key, np.frombuffer(self._sizes, np.int32), row)
        telling = complete & ~_set_phrases(run, key, row, end)
        telling &= _occurs_in_many(run, row)
        return _with_first(run[telling], row[telling])

    def held(self) -> Containment:
        """The rows whose sequence of exchanges is contained in another row's; numbered anew at each call."""
        out = SharedRuns(1, (1,))
        for look in (out.add, out.look):
            for values, bounds, rows in self._blocks():
                look(values, bounds, rows)
        return out.held()

    def _blocks(self) -> Iterator[tuple[U64, I64, I64]]:
        """The exchanges, about `_CHUNK` of them at a time, of whole rows."""
        ends = np.append(0, np.cumsum(np.frombuffer(self._counts, np.int32), dtype=np.int64))
        keys = np.frombuffer(self._exchanges, np.int64).view(np.uint64)
        for rows in np.split(np.arange(len(ends) - 1), np.flatnonzero(np.diff(ends[:-1] // _CHUNK)) + 1):
            if len(rows):
                first, last = ends[rows[0]], ends[rows[-1] + 1]
                yield keys[first:last], ends[rows[0] : rows[-1] + 2] - first, rows

    def inside(
        self, held: Sequence[int], others: Sequence[int], texts: Containment | None = None
    ) -> Iterator[tuple[int, int]]:
        """Pairs (row of `held`, row of `others`) where the second contains the first, which is no short set phrase."""
        sizes, counts = np.frombuffer(self._sizes, np.int32), np.frombuffer(self._counts, np.int32)
        total = np.append(0, np.cumsum(sizes, dtype=np.int64))
        ends = np.cumsum(counts)
        characters = total[ends] - total[ends - counts]
        for one in (self.held(), *([texts] if texts else [])):
            long = (characters[one.first()] if one is not texts else one.size) >= RUN
            yield from one.inside(held, others, long | (one.branches <= BRANCHES))


def _holding(every: Sequence[Containment], rows: int) -> tuple[I64, I64, NDArray[np.bool_]]:
    """Links between rows of which one contains the other, and whether each row is a set phrase, bool [rows]. Where a
    group becomes too large, the threshold of branches for a set phrase is lowered."""
    phrases = [one.branches > BRANCHES for one in every]
    most = BRANCHES
    while True:
        i, j = (np.concatenate(side) for side in zip(*map(Containment.links, every, phrases), strict=True))
        large = _large(i, j, rows)
        most //= 2
        more = [(one.branches > most) & large[one.first()] & ~known for one, known in zip(every, phrases, strict=True)]
        if not most or not any(one.any() for one in more):
            break
        phrases = [known | one for known, one in zip(phrases, more, strict=True)]
    of_phrases = np.zeros(rows, bool)
    for one, known in zip(every, phrases, strict=True):
        of_phrases[one.row[known[one.number]]] = True
    free = ~of_phrases
    return i[free[i]], j[free[i]], of_phrases


def _large(i: I64, j: I64, rows: int) -> NDArray[np.bool_]:
    """Whether each row's group of these links is too large, bool [rows]."""
    group = groups(Pairs(i.astype(np.int32), j.astype(np.int32), np.ones(len(i), np.float32)), rows)
    large: NDArray[np.bool_] = np.bincount(group, minlength=rows)[group] > max(FEW, CHAIN * rows)
    return large


def _short(key: U64, row: I64, phrases: NDArray[np.bool_]) -> tuple[I64, I64]:
    """Links between rows without an exchange of their own and rows that share one of theirs that is no set phrase."""
    own = np.ones(len(phrases), bool)
    own[row] = False
    own[row[~_occurs_in_many(key, row)]] = True
    lacking = ~own & ~phrases
    if not lacking.any():
        return row[:0], row[:0]
    telling = ~_set_phrases(key, key, row, np.arange(len(key)))
    telling &= np.isin(key, key[telling & lacking[row]]) & ~phrases[row]
    return _with_first(key[telling], row[telling])


def _runs(key: U64, sizes: NDArray[np.int32], row: I64) -> tuple[U64, I64, NDArray[np.bool_]]:
    """The shortest run of at least `RUN` characters from each exchange on, within its row: its hash, its last exchange,
    and whether there is one."""
    run, total = mixed(key), sizes.astype(np.int64)
    end = np.arange(len(key))
    for _ in range(_LONGEST):
        short = np.flatnonzero(total < RUN)
        short = short[end[short] + 1 < len(key)]
        short = short[row[end[short] + 1] == row[short]]
        if not len(short):
            break
        end[short] += 1
        run[short] = mixed(run[short] * _PRIME + key[end[short]])
        total[short] += sizes[end[short]]
    return run, end, total >= RUN


def _set_phrases(run: U64, key: U64, row: I64, end: I64) -> NDArray[np.bool_]:
    """Whether each run is a set phrase: more than BRANCHES exchanges before or behind it; `end` is its last one."""
    _, number, times = np.unique(run, return_inverse=True, return_counts=True)
    out = np.zeros(len(times), bool)
    often = np.flatnonzero(times[number] > BRANCHES)
    if not len(often):
        return out[number]
    for step in _STEPS:
        for at in (often - step, end[often] + step):
            there = np.clip(at, 0, len(key) - 1)
            beside = np.where((there == at) & (row[there] == row[often]), key[there], np.uint64(0))
            order = np.lexsort((beside, number[often]))
            own, beside = number[often][order], beside[order]
            new = np.append(True, (own[1:] != own[:-1]) | (beside[1:] != beside[:-1]))
            out |= np.bincount(own[new], minlength=len(out)) > BRANCHES
    return out[number]


def _occurs_in_many(key: U64, row: I64) -> NDArray[np.bool_]:
    """Whether each key also occurs in another row."""
    _, number = np.unique(key, return_inverse=True)
    least, most = np.full(len(key), row.max()), np.zeros(len(key), np.int64)
    np.minimum.at(least, number, row)
    np.maximum.at(most, number, row)
    in_many: NDArray[np.bool_] = least[number] < most[number]
    return in_many


def _with_first(key: U64, row: I64) -> tuple[I64, I64]:
    """Links (first row of a key, other row with it); `row` ascends."""
    _, index, number = np.unique(key, return_index=True, return_inverse=True)
    first = row[index[number]]
    other = first < row
    return first[other], row[other]
