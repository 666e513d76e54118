"""Near-duplicate detection by MinHash and banding, without comparing all pairs.

Three stages. `Sketches` reads every text once and keeps 140 bytes of it. `near_pairs` takes candidates whose sketches
agree in a band, and reads their texts again for the true Jaccard similarity. `representative` and `groups` turn pairs
into kept rows and into connected groups. Texts are compared as sets of shingles (shingles.py).

MinHash: the smallest of a set's numbers under a random order is the same for two sets with probability J, their Jaccard
similarity (Broder 1997, "On the resemblance and containment of documents"). One byte of it is enough: then a share of
J + (1 - J) / 256 agrees (Li & König 2010, "b-bit minwise hashing"). Banding: rows meet that agree in all r slots of one
of b bands, which happens with probability 1 - (1 - J**r)**b (Leskovec, Rajaraman & Ullman, "Mining of massive
datasets", chapter 3).

The work is linear in the rows. Equal texts are one class with m - 1 links to its first row. The rows of a bucket of at
most SMALL are all compared; in a larger one each meets a few heads. So among many rows that share most of a long
boilerplate a near pair is missed a little more easily than the formula says (recall 0.99 where all are alike to 0.75).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.base.errors import DataError
from tuneloop.base.files import folder_atomic
from tuneloop.data.dedupe.shingles import I64, U64, chunks, mixed, shingled

I32 = NDArray[np.int32]
TextOf = Callable[[I64], Sequence[str]]
"""Row numbers, ascending -> their texts, the same as were sketched."""

SLOTS = 128
"""Bytes of a sketch."""
RECALL = 0.995
"""Recall at the threshold itself; it is higher for more similar rows."""
SMALL = 8
"""Most rows of a bucket that are compared in all pairs."""
_HEADS = 8
"""Rows of a larger bucket that the others are compared with, in turn."""
_BLOCK = 1 << 20
"""Shingles of the pairs that are verified in one block."""
_ORDER_BITS = 18
_LOWER = np.uint64(0xFFFFFFFF)
_MULTIPLIERS = (mixed(np.arange(1, SLOTS + 1, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


@dataclass(frozen=True)
class Pairs:
    """Rows i < j, ascending by j, then i, and the Jaccard similarity of their shingles. All [pairs]."""

    i: I32
    j: I32
    jaccard: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.i)


@dataclass(frozen=True)
class _Table:
    slots: NDArray[np.uint8]
    """[rows, SLOTS]"""
    digest: U64
    """[rows], equal for rows with the same shingles equally often."""
    sizes: NDArray[np.uint32]
    """[rows], shingles with repeats."""


class Sketches:
    """MinHash sketches of texts in the order of `add`, SLOTS + 12 bytes each; vectorised, so add many at a time."""

    def __init__(self) -> None:
        self._blocks: list[_Table] = []

    def __len__(self) -> int:
        return sum(len(block.sizes) for block in self._blocks)

    def add(self, texts: Sequence[str]) -> None:
        for begin, end in chunks(texts):
            self._blocks.append(_sketched(texts[begin:end]))

    def table(self) -> _Table:
        """All rows as one table."""
        if len(self._blocks) != 1:
            blocks = self._blocks or [_Table(np.empty((0, SLOTS), np.uint8), np.empty(0, np.uint64), np.empty(0, "u4"))]
            self._blocks = [_Table(*(np.concatenate([getattr(b, name) for b in blocks]) for name in _FIELDS))]
        return self._blocks[0]

    def __add__(self, other: Sketches) -> Sketches:
        """The rows of both, one after the other."""
        joined = Sketches()
        joined._blocks = self._blocks + other._blocks
        return joined

    def save(self, folder: Path) -> None:
        """Write one .npy file a column into a folder, which appears whole or not at all; an older one is replaced."""
        with folder_atomic(folder, alone=False) as draft:
            for name in _FIELDS:
                np.save(draft / f"{name}.npy", getattr(self.table(), name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Sketches:
        """What `save` wrote; raises TL-DATA-DAMAGED where it is not whole."""
        try:
            table = _Table(*(np.load(folder / f"{name}.npy", allow_pickle=False) for name in _FIELDS))
        except (OSError, ValueError, EOFError) as error:
            raise DataError("TL-DATA-DAMAGED", where=str(folder), error=str(error)) from error
        n = len(table.sizes)
        forms = [(getattr(table, name).dtype.str, getattr(table, name).shape) for name in _FIELDS]
        if forms != [("|u1", (n, SLOTS)), ("<u8", (n,)), ("<u4", (n,))]:
            raise DataError("TL-DATA-DAMAGED", where=str(folder), error=str(forms))
        out = cls()
        out._blocks = [table]
        return out


_FIELDS = ("slots", "digest", "sizes")


def _sketched(texts: Sequence[str]) -> _Table:
    """The sketches of texts: slot k is a byte of the smallest shingle times the k-th odd multiplier, modulo 2**32."""
    values, bounds = shingled(texts)
    starts, short = bounds[:-1], (values >> np.uint64(32)).astype(np.uint32)
    smallest = np.empty((SLOTS, len(texts)), np.uint32)
    product = np.empty_like(short)
    for slot, multiplier in zip(smallest, _MULTIPLIERS, strict=True):
        np.multiply(short, multiplier, out=product)
        np.minimum.reduceat(product, starts, out=slot)
    smallest = (smallest ^ (smallest >> np.uint32(16))) * np.uint32(0x9E3779B1) >> np.uint32(24)
    slots = np.ascontiguousarray(smallest.astype(np.uint8).T)
    return _Table(slots, np.add.reduceat(mixed(values), starts), np.diff(bounds).astype(np.uint32))


def bands(threshold: float) -> tuple[int, int]:
    """(bands, slots of a band): the widest with which rows at the threshold still share a band with probability RECALL.

    >>> bands(0.8), bands(0.5), bands(1.0)
    ((21, 6), (42, 3), (1, 128))
    """
    wide = [r for r in range(1, SLOTS + 1) if 1 - (1 - threshold**r) ** (SLOTS // r) >= RECALL]
    width = max(wide, default=1)
    return SLOTS // width, width


def near_pairs(
    sketches: Sketches, text_of: TextOf, threshold: float, apart: NDArray[np.integer[Any]] | None = None
) -> Pairs:
    """Pairs whose true Jaccard similarity is at least `threshold`.

    Of rows with equal shingles all are paired with the first, and only the first with other rows; equal rows of
    different `apart` numbers count as unequal. Promised for thresholds of 0.5 and above: recall 0.995,
    precision 1.
    """
    table = sketches.table()
    first = _first_equal(table.digest, apart)
    rows = np.flatnonzero(first == np.arange(len(first)))
    i, j, jaccard = _verified(_candidates(table.slots, rows, threshold), table.sizes, text_of, threshold)
    again = np.flatnonzero(first != np.arange(len(first)))
    i, j = np.concatenate((first[again], i)), np.concatenate((again, j))
    jaccard = np.concatenate((np.ones(len(again), np.float32), jaccard))
    order = np.lexsort((i, j))
    return Pairs(i[order].astype(np.int32), j[order].astype(np.int32), jaccard[order])


def contaminated(train: Sketches, test: Sketches, train_text: TextOf, test_text: TextOf, threshold: float) -> Pairs:
    """Contaminated test rows: each once as i, with the most similar train row as j."""
    n = len(train)
    if not n:
        return Pairs(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))
    table = (train + test).table()
    first = _first_equal(table.digest, None)
    rows = np.flatnonzero(first == np.arange(len(first)))

    def text_of(wanted: I64) -> list[str]:
        cut = int(np.searchsorted(wanted, n))
        ours = list(train_text(wanted[:cut])) if cut else []
        return ours + (list(test_text(wanted[cut:] - n)) if cut < len(wanted) else [])

    codes = _candidates(table.slots, rows, threshold, tests_from=n)
    i, j, jaccard = _verified(codes, table.sizes, text_of, threshold)
    partner, similar = np.where(first < n, first, -1), np.ones(len(first), np.float32)
    best = np.lexsort((-i, jaccard))  # the most similar one last, of equal ones the first row: the last one stays
    partner[j[best]], similar[j[best]] = i[best], jaccard[best]
    own = first[n:]  # of equal test rows only the first was compared
    where = np.where(own < n, own, partner[own])
    hits = np.flatnonzero(where >= 0)
    values = np.where(own < n, np.float32(1), similar[own])[hits]
    return Pairs(hits.astype(np.int32), where[hits].astype(np.int32), values)


def _first_equal(digest: U64, apart: NDArray[np.integer[Any]] | None) -> I64:
    """The first row with the same shingles (and the same number in `apart`), int64 [rows]."""
    if apart is not None:
        digest = digest ^ mixed(apart.astype(np.int64).view(np.uint64) + np.uint64(1))
    _, index, inverse = np.unique(digest, return_index=True, return_inverse=True)
    first: I64 = index[inverse]
    return first


def _candidates(slots: NDArray[np.uint8], rows: I64, threshold: float, tests_from: int = 0) -> U64:
    """Codes j << 32 | i of rows that share a band and whose sketches allow the threshold, ascending.

    The share of equal slots spreads by sqrt(t (1 - t) / SLOTS) around t; four times that is allowed for. With
    `tests_from`, only pairs of a row before it and a row from it on.
    """
    number, width = bands(threshold)
    least = SLOTS * threshold - 4 * sqrt(SLOTS * threshold * (1 - threshold))
    codes = np.empty(0, np.uint64)
    for band in range(number):
        new = [codes]
        for i, j in _meetings(slots, rows, range(band * width, band * width + width), least, tests_from):
            if tests_from:
                across = (i < tests_from) & (j >= tests_from)
                i, j = i[across], j[across]
            alike = _alike(slots, i, j, least)
            new.append((j[alike].astype(np.uint64) << np.uint64(32)) | i[alike].astype(np.uint64))
        codes = distinct(np.concatenate(new))
    return codes


def _meetings(
    slots: NDArray[np.uint8], rows: I64, columns: range, least: float, tests_from: int
) -> Iterator[tuple[I64, I64]]:
    """Candidate pairs i < j of one band: all of a small bucket; in a large one each head with rows like it."""
    rows, sizes = _buckets(slots, rows, columns)
    large = np.repeat(sizes > SMALL, sizes)
    yield from all_pairs(rows[~large], sizes[sizes <= SMALL])
    rows, sizes = rows[large], sizes[sizes > SMALL]
    for _ in range(_HEADS):
        if not len(rows):
            return
        starts = np.cumsum(sizes) - sizes
        heads = np.repeat(rows[starts], sizes)
        # With tests, only those leave with their head: a train row may still be the head that another test row needs.
        hit = _alike(slots, heads, rows, least) & (rows >= tests_from) & (heads < (tests_from or len(slots)))
        hit[starts] = False
        yield heads[hit], rows[hit]
        hit[starts] = True
        left = np.add.reduceat(~hit, starts)
        rows, sizes = rows[~hit], left[left > 0]


def _buckets(slots: NDArray[np.uint8], rows: I64, columns: range) -> tuple[I64, I64]:
    """Rows that agree in the columns with another row, by bucket, ascending in each; and the buckets' sizes."""
    key = np.zeros(len(rows), np.uint64)
    for column in columns:
        key = key * np.uint64(0x9E6C63D0876A9A47) + slots[rows, column]
    # The upper half of the mixed key is enough: rows that meet by chance are told apart by their sketches.
    key = np.sort((mixed(key) & ~_LOWER) | rows.astype(np.uint64))
    new = np.ones(len(key), bool)
    new[1:] = (key[1:] ^ key[:-1]) > _LOWER
    sizes = np.diff(np.append(np.flatnonzero(new), len(key)))
    shared = np.repeat(sizes > 1, sizes)
    return (key[shared] & _LOWER).astype(np.int64), sizes[sizes > 1]


def all_pairs(rows: I64, sizes: I64) -> Iterator[tuple[I64, I64]]:
    """Every pair of each bucket, by distance within it."""
    after = np.repeat(np.cumsum(sizes), sizes) - np.arange(len(rows))  # rows from here to the bucket's end
    for distance in range(1, int(sizes.max(initial=0))):
        at = np.flatnonzero(after > distance)
        yield rows[at], rows[at + distance]


def _alike(slots: NDArray[np.uint8], i: I64, j: I64, least: float) -> NDArray[np.bool_]:
    """Whether at least `least` slots of the sketches agree, bool [pairs]."""
    out = np.empty(len(i), bool)
    for at in range(0, len(i), 1 << 14):
        block = slice(at, at + (1 << 14))
        same = (slots[i[block]] == slots[j[block]]).view(np.uint64)
        # Eight counters of a byte each, at most SLOTS / 8 in one; the product adds them up in the top byte.
        out[block] = (same.sum(axis=1, dtype=np.uint64) * np.uint64(0x0101010101010101) >> np.uint64(56)) >= least
    return out


def _verified(
    codes: U64, sizes: NDArray[np.uint32], text_of: TextOf, threshold: float
) -> tuple[I64, I64, NDArray[np.float32]]:
    """The pairs at or above the threshold, verified on the texts block by block, ascending by j."""
    j, i = (codes >> np.uint64(32)).astype(np.int64), (codes & _LOWER).astype(np.int64)
    work = np.cumsum(sizes[i].astype(np.int64) + sizes[j])
    jaccard = np.empty(len(i), np.float32)
    at = 0
    while at < len(i):
        done = int(work[at - 1]) if at else 0
        end = max(int(np.searchsorted(work, done + _BLOCK, "right")), at + 1)
        end = min(end, at + (1 << (_ORDER_BITS - 1)))
        jaccard[at:end] = _jaccards(i[at:end], j[at:end], text_of)
        at = end
    near = jaccard >= np.float32(threshold)
    return i[near], j[near], jaccard[near]


def _jaccards(i: I64, j: I64, text_of: TextOf) -> NDArray[np.float64]:
    """True Jaccard similarities of the pairs."""
    rows, place = np.unique(np.concatenate((i, j)), return_inverse=True)
    marks, bounds = _sets(text_of(rows))
    counts = np.diff(bounds)
    n = len(i)
    pair = np.tile(np.arange(n), 2)
    taken = counts[place]
    at = np.arange(int(taken.sum())) + np.repeat(bounds[place] - (np.cumsum(taken) - taken), taken)
    tagged = np.sort(_tagged(np.repeat(pair, taken), marks[at]))
    twice = tagged[1:][tagged[1:] == tagged[:-1]] >> np.uint64(64 - _ORDER_BITS)
    shared = np.bincount(twice.astype(np.int64), minlength=n)
    similarities: NDArray[np.float64] = shared / (taken[:n] + taken[n:] - shared)
    return similarities


def _sets(texts: Sequence[str]) -> tuple[U64, I64]:
    """The distinct shingles of the texts, sorted within each, and the bounds of each text."""
    parts, counts = [], []
    for begin, end in chunks(texts):
        values, bounds = shingled(texts[begin:end])
        tagged = distinct(_tagged(np.repeat(np.arange(end - begin), np.diff(bounds)), values))
        counts.append(np.bincount((tagged >> np.uint64(64 - _ORDER_BITS)).astype(np.int64), minlength=end - begin))
        parts.append(tagged << np.uint64(_ORDER_BITS))
    return np.concatenate(parts), np.concatenate(([0], np.cumsum(np.concatenate(counts))))


def distinct(values: U64) -> U64:
    """The sorted unique values; several times faster than np.unique, which hashes them first."""
    values = np.sort(values)
    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    return values[new]


def _tagged(owner: I64, values: U64) -> U64:
    """Shingles tagged with their owner's number, 46 bits of the shingle below it: equal by chance once in 10**13."""
    return (owner.astype(np.uint64) << np.uint64(64 - _ORDER_BITS)) | (values >> np.uint64(_ORDER_BITS))


def representative(pairs: Pairs, n: int) -> I32:
    """The first kept row that each row is near to, or itself, which is then kept, int32 [n].

    A row is only dropped for a row that is kept and near to it; a row equal to a dropped one goes the same way.

    >>> i, j, s = np.array([0, 1], "i4"), np.array([1, 2], "i4"), np.array([0.9, 0.9], "f4")
    >>> representative(Pairs(i, j, s), 3).tolist()
    [0, 0, 2]
    """
    out = np.arange(n, dtype=np.int32)
    order = np.lexsort((pairs.i, pairs.j))
    for i, j, jaccard in zip(
        pairs.i[order].tolist(), pairs.j[order].tolist(), pairs.jaccard[order].tolist(), strict=True
    ):
        if out[j] == j and (out[i] == i or jaccard == 1):
            out[j] = out[i]
    return out


def groups(pairs: Pairs, n: int) -> I32:
    """The first row of each row's connected component of pairs, int32 [n].

    >>> i, j, s = np.array([0, 1], "i4"), np.array([1, 2], "i4"), np.array([0.9, 0.9], "f4")
    >>> groups(Pairs(i, j, s), 4).tolist()
    [0, 0, 0, 3]
    """
    label = np.arange(n, dtype=np.int32)
    while True:
        one, other = label[pairs.i], label[pairs.j]
        if (one == other).all():
            return label
        np.minimum.at(label, np.maximum(one, other), np.minimum(one, other))
        while (label[label] != label).any():
            label = label[label]
