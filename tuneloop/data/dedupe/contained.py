"""Containment: rows that are whole inside another row, found exactly, without comparing all pairs.

A sequence is a row's exchanges, or the characters of its whole text (prompt and answer, blanks and letter case aside):
so a dialogue is also found in one that has it as a history inside a single field, and a document in a longer one.

Each sequence has four anchors, short runs that are indexed by hash, and its rarest one is searched in all rows. At a
hit the sequence would begin and end at known places, and one comparison of rolling hashes tells whether it does (Karp &
Rabin 1987). That is linear in the characters, and reads each row twice: for its anchors, and to search.

A set phrase (a greeting, a farewell) has many different continuations or predecessors: `branches` counts them. Growing
histories have one continuation, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from tuneloop.data.dedupe.fingerprints import Letters
from tuneloop.data.dedupe.shingles import I64, U64, chunks, mixed, powers

LEAST = 12
"""Fewest non-blank characters of a text that is searched in others; shorter ones are found by their exchanges alone."""
_BESIDE = (3, 8, 24, 64)
"""Lengths, in characters, of the contexts before and behind a text by which its branches are counted."""
_ANCHORS = 4
_EXPANDED = 1 << 18
"""Candidate places of one block."""
_HALF = np.uint64(32)


@dataclass(frozen=True)
class Containment:
    """Sequences contained in other rows. Equal sequences have one number, below `branches`' length.

    `number` and `row` [sequences]: each row's own, ascending by row; a preference has two. `inner` (a number) and
    `outer` (the row that contains it) [pairs], both int64. `size` and `branches` [numbers]: characters or exchanges,
    and how many different ones follow it or precede it, whichever are more.
    """

    number: I64
    row: I64
    inner: I64
    outer: I64
    size: I64
    branches: I64

    def links(self, phrases: NDArray[np.bool_]) -> tuple[I64, I64]:
        """Links (first row of a number, row that equals or contains it) for a split; of numbers in `phrases` the equal
        rows alone."""
        first = self.first()
        telling = ~phrases[self.inner]
        return (
            np.concatenate((first[self.number], first[self.inner[telling]])),
            np.concatenate((self.row, self.outer[telling])),
        )

    def first(self) -> I64:
        """[numbers]: the first row of each."""
        out = np.zeros(len(self.size), np.int64)
        out[self.number[::-1]] = self.row[::-1]
        return out

    def inside(
        self, held: Sequence[int], others: Sequence[int], wanted: NDArray[np.bool_]
    ) -> Iterator[tuple[int, int]]:
        """Pairs (row of `held`, row of `others`) where the second contains the first, of the `wanted` numbers."""
        own = np.isin(self.row, held) & wanted[self.number]
        of = np.full(len(self.size), -1, np.int64)
        of[self.number[own][::-1]] = self.row[own][::-1]
        there = (of[self.inner] >= 0) & np.isin(self.outer, others)
        yield from zip(of[self.inner[there]].tolist(), self.outer[there].tolist(), strict=True)


class SharedRuns:
    """A containment search over sequences of numbers in two passes: `add` all, then `look` at the same ones, then
    `held`.

    `run` is an anchor's length; shorter sequences are not searched. `beside` are the context lengths by which set
    phrases are detected. 60 bytes a sequence.
    """

    def __init__(self, run: int, beside: Sequence[int]) -> None:
        self.run, self.beside = run, beside
        self._own: list[tuple[I64, I64, U64, U64]] = []
        self._index: _Index | None = None
        self._pairs: list[U64] = []
        self._sides: list[U64] = []

    def add(self, values: U64, bounds: I64, rows: I64) -> None:
        """Sequence n of row `rows[n]` is `values[bounds[n]:bounds[n + 1]]`; rows ascend from call to call."""
        sums = _Sums(values)
        begin, size = bounds[:-1], np.diff(bounds)
        long = size >= self.run
        begin, size = begin[long], size[long]
        steps = np.arange(_ANCHORS)
        at = begin[:, None] + (size[:, None] - self.run) * steps // (_ANCHORS - 1)
        anchors = sums.run(at, at + self.run)
        self._own.append((rows[long], size, sums.run(begin, begin + size), anchors))

    def look(self, values: U64, bounds: I64, rows: I64, begins: NDArray[np.bool_] | None = None) -> None:
        """Search all added sequences in these ones, which must have been added too. `begins` [values]: where a match
        may begin, and before which it may end."""
        index = self._index = self._index or _Index(self._own, self.run)
        if len(values) < self.run or not len(index.hashes):
            return
        sums = _Sums(values)
        place = np.arange(len(values) - self.run + 1)
        anchors = sums.run(place, place + self.run)
        met = np.flatnonzero(index.table[anchors >> index.shift])
        slot = np.minimum(np.searchsorted(index.anchor, anchors[met]), len(index.anchor) - 1)
        same = index.anchor[slot] == anchors[met]
        met, slot = met[same], slot[same]
        own = np.searchsorted(bounds, met, "right") - 1
        ways = np.cumsum(index.ways[slot])
        for part in np.split(np.arange(len(met)), np.flatnonzero(np.diff(ways // _EXPANDED)) + 1):
            self._match(index, sums, (met[part], slot[part], own[part]), bounds, rows, begins)

    def _match(
        self,
        index: _Index,
        sums: _Sums,
        met: tuple[I64, I64, I64],
        bounds: I64,
        rows: I64,
        begins: NDArray[np.bool_] | None,
    ) -> None:
        ways = index.ways[met[1]]
        at, slot, own = (np.repeat(one, ways) for one in met)
        way = index.begin[slot] + np.arange(len(at)) - np.repeat(np.cumsum(ways) - ways, ways)
        start = at - index.offset[way]
        end = start + index.length[way]
        low, high = bounds[own], bounds[own + 1]
        fits = (start >= low) & (end <= high) & (end - start < high - low)
        if begins is not None:  # "order 1" is not in "order 10"
            fits[fits] = begins[start[fits]] & ((end == high)[fits] | begins[np.minimum(end[fits], len(begins) - 1)])
        start, end, low, high, own = start[fits], end[fits], low[fits], high[fits], own[fits]
        keys = sums.run(start, end)
        number = np.minimum(np.searchsorted(index.hashes, keys), len(index.hashes) - 1)
        same = (index.hashes[number] == keys) & (index.size[number] == end - start)
        number, start, end, low, high, own = (one[same] for one in (number, start, end, low, high, own))
        self._pairs.append(np.unique((number.astype(np.uint64) << _HALF) | rows[own].astype(np.uint64)))
        codes = []
        for level, length in enumerate(self.beside):
            behind, before = end + length <= high, start - length >= low
            for side, (those, first) in enumerate(((behind, end), (before, start - length))):
                run = mixed(sums.run(first[those], first[those] + length)) >> _HALF
                code = number[those] * (2 * len(self.beside)) + 2 * level + side
                codes.append((code.astype(np.uint64) << _HALF) | run)
        self._sides.append(np.unique(np.concatenate(codes)))

    def held(self) -> Containment:
        index = self._index or _Index(self._own, self.run)
        pairs = _unique(self._pairs)
        inner, outer = (pairs >> _HALF).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
        kinds = 2 * len(self.beside)
        sides = (_unique(self._sides) >> _HALF).astype(np.int64)
        count = np.bincount(sides, minlength=kinds * len(index.hashes)).reshape(-1, kinds)
        branches = count.max(axis=1) if len(count) else np.zeros(0, np.int64)
        return Containment(index.number, index.row, inner, outer, index.size, branches)


class _Sums:
    """Prefix sums of a polynomial hash, by which a run of any length is hashed at once."""

    def __init__(self, values: U64) -> None:
        power, self._inverse = powers(len(values) + 1)
        self._total = np.append(np.uint64(0), np.cumsum(values * power[: len(values)]))

    def run(self, start: I64, end: I64) -> U64:
        out: U64 = (self._total[end] - self._total[start]) * self._inverse[start]
        return out


class _Index:
    """The sequences by their hashes (`hashes`, sorted; their `size`), and by their rarest anchors: at place `slot` of
    `anchor`, sorted, `ways[slot]` from `begin[slot]` on of where a sequence begins before it and how long it is."""

    def __init__(self, own: Sequence[tuple[I64, I64, U64, U64]], run: int) -> None:
        none = (
            np.zeros(0, np.int64),
            np.zeros(0, np.int64),
            np.zeros(0, np.uint64),
            np.zeros((0, _ANCHORS), np.uint64),
        )
        self.row, size, keys, anchors = (np.concatenate(one) for one in zip(*(own or [none]), strict=True))
        self.hashes, first, self.number = np.unique(keys, return_index=True, return_inverse=True)
        self.size, anchors = size[first], anchors[first]
        _, at, count = np.unique(anchors, return_inverse=True, return_counts=True)
        best = count[at.reshape(anchors.shape)].argmin(axis=1)
        ways = np.stack(
            (
                np.take_along_axis(anchors, best[:, None], 1)[:, 0].view(np.int64),
                (self.size - run) * best // (_ANCHORS - 1),
                self.size,
            ),
            axis=1,
        )
        order = np.lexsort((ways[:, 2], ways[:, 1], ways[:, 0].view(np.uint64)))
        ways = ways[order]
        ways = ways[np.append(np.ones(min(len(ways), 1), bool), (ways[1:] != ways[:-1]).any(axis=1))]
        self.offset, self.length = ways[:, 1], ways[:, 2]
        self.anchor, self.begin, self.ways = np.unique(
            ways[:, 0].copy().view(np.uint64), return_index=True, return_counts=True
        )
        bits = min(max(len(self.anchor).bit_length() + 5, 8), 24)
        self.shift = np.uint64(64 - bits)
        self.table = np.zeros(1 << bits, bool)
        self.table[self.anchor >> self.shift] = True


def held_texts(read: Callable[[], Iterator[list[list[str]]]]) -> Containment:
    """The rows whose whole text is contained in another row's. `read` iterates over batches of rows, each with its
    texts (a preference has two), and is called twice."""
    out = SharedRuns(LEAST, _BESIDE)
    for second in (False, True):
        at = 0
        for batch in read():
            rows = np.repeat(np.arange(at, at + len(batch)), np.fromiter(map(len, batch), np.int64, len(batch)))
            texts = list(chain.from_iterable(batch))
            for begin, end in chunks(texts):
                letters = Letters(texts[begin:end])
                if second:
                    out.look(letters.values, letters.bounds, rows[begin:end], letters.begins())
                else:
                    out.add(letters.values, letters.bounds, rows[begin:end])
            at += len(batch)
    return out.held()


def _unique(parts: Sequence[U64]) -> U64:
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]))
