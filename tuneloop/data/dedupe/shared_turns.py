"""What rows have in common word for word: the question they ask, and exchanges (a user's turn with what follows it).

A dialogue lies in another where all its exchanges do: histories that grow row by row, windows that slide over one long
dialogue, a dialogue that was cut in pieces. Such rows share an exchange, or several short ones in a row, and belong on
one side of a split. Of a text to go on writing, a line stands for an exchange.

An exchange that many different ones follow or precede (a greeting, a farewell) joins nothing; a row that has nothing
else is better trained on than held out, since others hold it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuneloop.base.records import Record
from tuneloop.data.dedupe.exact import squeezed
from tuneloop.data.dedupe.shingles import I64, U64, mixed

QUESTION = 12
"""Characters from which on equal questions keep rows together."""
RUN = 64
"""Characters of exchanges that rows share word for word, from which on they belong together."""
_LONGEST = 64
"""Exchanges of a run; shorter ones than a character each are none."""
_BRANCHES = 8
"""Different exchanges that may follow or precede one before it counts as a set phrase."""
_PRIME = np.uint64(0x9E3779B97F4A7C15)


def question(record: Record) -> str:
    """All text before the first trained answer but the system prompt, case and blanks aside; of a labelled row its
    text; "" where there is none or it is too short to tell rows apart.

    >>> from tuneloop.base.records import Message
    >>> turns = (("system", "Be brief."), ("user", "How far is the Moon?"), ("assistant", "Far."))
    >>> question(Record(tuple(Message(role, text) for role, text in turns)))
    'how far is the moon?'
    """
    if record.kind == "text":
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
    if record.kind == "text":
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
    """Rows that belong together, i < j, both int64 [links]; and rows that others hold and nothing tells apart."""

    i: I64
    j: I64
    phrases: I64


class SharedTurns:
    """Questions and exchanges of rows in the order they were added: 8 bytes a row and 12 an exchange."""

    def __init__(self) -> None:
        self._questions, self._counts = array("q"), array("i")
        self._exchanges, self._sizes = array("q"), array("i")

    def add(self, records: Sequence[Record]) -> None:
        for record in records:
            self._questions.append(hash(question(record)))
            own = list(exchanges(record)) if record.kind != "label" else []
            self._counts.append(len(own))
            self._exchanges.extend(map(hash, own))
            self._sizes.extend(map(len, own))

    def questions(self) -> tuple[I64, I64]:
        """Rows that ask the same: each with the first one."""
        keys = np.frombuffer(self._questions, np.int64)
        asked = np.flatnonzero(keys)
        return _with_first(keys[asked].view(np.uint64), asked)

    def turns(self) -> Shared:
        """Rows that share exchanges; see the head of this file."""
        counts = np.frombuffer(self._counts, np.int32)
        row = np.repeat(np.arange(len(counts)), counts)
        key = np.frombuffer(self._exchanges, np.int64).view(np.uint64)
        if not len(key):
            return Shared(*(np.zeros(0, np.int64),) * 3)
        run, end, whole = _runs(key, np.frombuffer(self._sizes, np.int32), row)
        telling = whole & ~_set_phrases(run, _neighbours(key, row, end))
        telling &= _occurs_in_many(run, row)
        i, j = _with_first(run[telling], row[telling])
        own = row[~_occurs_in_many(key, row)]
        phrases = counts > 0
        phrases[own], phrases[i], phrases[j] = False, False, False
        return Shared(i, j, np.flatnonzero(phrases))

    def inside(self, held: Sequence[int], others: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(row of `held`, row of `others`) where the second holds all exchanges of the first, one after the other."""
        keys, sizes = self._exchanges, np.frombuffer(self._sizes, np.int32)
        ends = np.cumsum(np.frombuffer(self._counts, np.int32))
        starts = ends - np.frombuffer(self._counts, np.int32)
        last: dict[int, list[int]] = {}
        for row in held:
            if sizes[starts[row] : ends[row]].sum() >= RUN:
                last.setdefault(keys[ends[row] - 1], []).append(row)
        for row in others if last else ():
            for end in range(starts[row] + 1, ends[row] + 1):
                for one in last.get(keys[end - 1], ()):
                    size = int(ends[one] - starts[one])
                    if end - size >= starts[row] and keys[end - size : end] == keys[starts[one] : ends[one]]:
                        yield one, row


def _runs(key: U64, sizes: NDArray[np.int32], row: I64) -> tuple[U64, I64, NDArray[np.bool_]]:
    """From each exchange on, the shortest run of at least `RUN` characters in its row: its number, its last exchange,
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


def _neighbours(key: U64, row: I64, end: I64) -> tuple[U64, U64]:
    """The exchange before each run and the one behind it, 0 where its row begins or ends."""
    before, behind = np.zeros(len(key), np.uint64), np.zeros(len(key), np.uint64)
    inside = np.flatnonzero(row[1:] == row[:-1])
    before[inside + 1] = key[inside]
    next_one = np.zeros(len(key), np.uint64)
    next_one[inside] = key[inside + 1]
    behind[:] = next_one[end]
    return before, behind


def _set_phrases(run: U64, neighbours: tuple[U64, U64]) -> NDArray[np.bool_]:
    """Whether many different exchanges precede or follow a run."""
    _, number = np.unique(run, return_inverse=True)
    out = np.zeros(len(run), bool)
    for beside in neighbours:
        order = np.lexsort((beside, number))
        new = np.ones(len(run), bool)
        new[1:] = (number[order][1:] != number[order][:-1]) | (beside[order][1:] != beside[order][:-1])
        out |= np.bincount(number[order[new]], minlength=len(run))[number] > _BRANCHES
    return out


def _occurs_in_many(key: U64, row: I64) -> NDArray[np.bool_]:
    """Whether another row has the same key."""
    _, number = np.unique(key, return_inverse=True)
    least, most = np.full(len(key), row.max()), np.zeros(len(key), np.int64)
    np.minimum.at(least, number, row)
    np.maximum.at(most, number, row)
    result: NDArray[np.bool_] = least[number] < most[number]
    return result


def _with_first(key: U64, row: I64) -> tuple[I64, I64]:
    """Pairs of the first row of each key, and every other row that has it; `row` ascends."""
    _, index, number = np.unique(key, return_index=True, return_inverse=True)
    first = row[index[number]]
    other = first < row
    return first[other], row[other]
