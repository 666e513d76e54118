"""Rows of which a tenth of the characters differ, or that share a passage: closer than a split may tear apart.

near.py compares words, which is right for dropping: two rows that share four of five word pairs say the same. For a
split that is not strict enough. One letter changed in every tenth word leaves a row readable and its answer known, and
of its word pairs a half.

Three stages, as there. `Fingerprints` keeps about 24 hashes of a text's character runs (6 characters of a script
without blanks, else 9; of short texts also half of it; blanks and case aside), those below a bound that depends on the
text's length alone (Broder 1997; Schleimer, Wilkerson & Aiken 2003, "Winnowing"). Rows that share at least two are
looked at again: `related` are those each of which is covered by runs of the other (3 characters, else 5), and those
that share `PASSAGE` in one piece. A run that many rows have is a set phrase and lets none meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tuneloop.data.dedupe.near import TextOf, all_pairs, distinct
from tuneloop.data.dedupe.shingles import BLANK, I64, LETTER, U64, chunks, looked_up, mixed, powers

Bools = NDArray[np.bool_]
COVERED = (0.78, 0.7)
"""Share of each row's characters that lie in runs of the other one; here and below of scripts without blanks, and of
others."""
PASSAGE = (64, 220)
"""Characters, blanks aside, of a passage that two rows share: 64 tokens."""
_SHORT = (20, 40)
"""Rows of fewer characters are told apart by fewer than a tenth of them."""
_EVEN = 0.8
"""The shorter of two rows that are the same but for a tenth has so much of the longer one's length."""
_SAMPLES = 24
_RUN, _HALF, _FINE = (6, 9), (3, 5), (3, 5)
_SMALL = (32, 80)
"""Texts of fewer characters meet by runs of half the length as well."""
_FREQUENT = 64
"""Rows that have a run before it counts as a set phrase."""
_SURE = 6
"""Rows from which on their number says how many others have the run."""
_ALL = 12
"""Rows of a run that are all compared with each other; of more, each with those next to it."""
_PARTNERS = 2
"""Rows that one is compared with, those that share most first."""
_PAIRS, _CHARACTERS = 1024, 1 << 17
"""Pairs whose texts are read at once, and about as many characters of them that are compared at once."""
_SPARSE = 128
"""Cells of a table of runs for each run in it."""


class Fingerprints:
    """Hashes of texts in the order they were added, about 100 bytes each. Add many at a time: it is vectorised."""

    def __init__(self) -> None:
        self._hashes: list[NDArray[np.uint32]] = []
        self._counts: list[NDArray[np.int32]] = []
        self._bounds: list[NDArray[np.float64]] = []

    def add(self, texts: Sequence[str]) -> None:
        for begin, end in chunks(texts):
            hashes, counts, bounds = _drawn(Letters(texts[begin:end]))
            self._hashes.append(hashes)
            self._counts.append(counts)
            self._bounds.append(bounds)

    def candidates(self, known: I64) -> tuple[I64, I64]:
        """Rows i < j that share at least two hashes and are not of one group already; `known` [rows] numbers those."""
        if not self._counts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        counts = np.concatenate(self._counts)
        row = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
        keys = distinct((np.concatenate(self._hashes).astype(np.uint64) << np.uint64(32)) | row)
        codes = np.sort(np.concatenate([np.zeros(0, np.uint64), *_met(keys, np.sort(np.concatenate(self._bounds)))]))
        new = np.ones(len(codes), bool)
        new[1:] = codes[1:] != codes[:-1]
        first = np.flatnonzero(new)
        shared = np.diff(np.append(first, len(codes)))
        j, i = (codes[first] >> np.uint64(32)).astype(np.int64), (codes[first] & np.uint64(0xFFFFFFFF)).astype(np.int64)
        wanted = (shared >= 2) & (known[i] != known[j])
        i, j, shared = i[wanted], j[wanted], shared[wanted]
        order = np.lexsort((i, -shared, j))
        i, j = i[order], j[order]
        place = np.arange(len(j)) - np.searchsorted(j, j, "left")
        best = place < _PARTNERS
        return i[best], j[best]


def _met(keys: U64, bounds: NDArray[np.float64]) -> Iterator[U64]:
    """j << 32 | i of the rows that meet at each hash; `keys` are hash << 32 | row; they and the rows' bounds ascend.

    Rows with a lower bound may have the run too: the number of rows that have it is estimated from those that could
    tell.
    """
    new = np.ones(len(keys), bool)
    new[1:] = (keys[1:] ^ keys[:-1]) > np.uint64(0xFFFFFFFF)
    sizes = np.diff(np.append(np.flatnonzero(new), len(keys)))
    row = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    hashes = (keys[new] >> np.uint64(32)).astype(np.float64)
    able = len(bounds) - np.searchsorted(bounds, hashes, "right")
    rare = sizes * len(bounds) <= _FREQUENT * np.maximum(able, 1)
    few, many = (sizes > 1) & (sizes <= _ALL) & (rare | (sizes < _SURE)), (sizes > _ALL) & rare
    meetings = list(all_pairs(row[np.repeat(few, sizes)], sizes[few]))
    rows, own = row[np.repeat(many, sizes)], np.repeat(np.arange(int(many.sum())), sizes[many])
    for distance in (1, 2, 3):
        at = np.flatnonzero(own[distance:] == own[:-distance])
        meetings.append((rows[at], rows[at + distance]))
    for i, j in meetings:
        yield (j.astype(np.uint64) << np.uint64(32)) | i.astype(np.uint64)


def related(i: I64, j: I64, text_of: TextOf) -> Bools:
    """[pairs]: whether rows i < j are the same but for a tenth, or share a long passage; read again block by block."""
    out = np.zeros(len(i), bool)
    for at in range(0, len(i), _PAIRS):
        block = slice(at, at + _PAIRS)
        rows, place = np.unique(np.stack((i[block], j[block])), return_inverse=True)
        texts, (one, other) = text_of(rows), place.reshape(2, -1)
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        work = np.cumsum(sizes[one] + sizes[other]) // _CHARACTERS
        for pairs in np.split(np.arange(len(one)), np.flatnonzero(np.diff(work)) + 1):
            used, own = np.unique(np.stack((one[pairs], other[pairs])), return_inverse=True)
            letters = Letters([texts[n] for n in used.tolist()])
            out[at + pairs] = _related(letters, *own.reshape(2, -1))
    return out


class Letters:
    """Texts as one array of numbers a character, case folded and without blanks; of each text whether its script has
    blanks between words (0 or 1: the place in a pair of settings)."""

    def __init__(self, texts: Sequence[str]) -> None:
        codes = np.frombuffer("\n".join((*texts, "")).encode("utf-32-le", "surrogatepass"), np.uint32)
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        values, kinds = looked_up(codes)
        kept = kinds != BLANK
        self.values: U64 = values[kept]
        self._letter, self._kept = kinds == LETTER, kept
        self.owner: I64 = np.repeat(np.arange(len(texts)), sizes + 1)[kept]
        self.bounds: I64 = np.searchsorted(self.owner, np.arange(len(texts) + 1))
        words = np.bincount(self.owner[kinds[kept] == LETTER], minlength=len(texts))
        self.spaced: I64 = (3 * words >= np.diff(self.bounds)).astype(np.int64)

    def begins(self) -> Bools:
        """Whether a word, or a character that stands for itself, begins at each."""
        inside = np.zeros(len(self._kept), bool)
        inside[1:] = self._letter[1:] & self._letter[:-1]
        result: Bools = ~inside[self._kept]
        return result

    def runs(self, lengths: Sequence[int], kind: I64) -> tuple[U64, Bools]:
        """A number for the run of characters that begins at each, and whether one of that length fits in its text;
        `kind` [texts] is the place of each text's length in `lengths`."""
        power, inverse = powers(len(self.values))
        total = np.append(np.uint64(0), np.cumsum(self.values * power[: len(self.values)]))
        out, fits = np.zeros(len(self.values), np.uint64), np.zeros(len(self.values), bool)
        kinds = kind[self.owner]
        for number, length in enumerate(lengths):
            n = max(len(self.values) - length + 1, 0)
            mine = np.flatnonzero((kinds[:n] == number) & (np.arange(n) + length <= self.bounds[self.owner[:n] + 1]))
            out[mine], fits[mine] = mixed((total[mine + length] - total[mine]) * inverse[mine]), True
        return out, fits


def _drawn(letters: Letters) -> tuple[NDArray[np.uint32], NDArray[np.int32], NDArray[np.float64]]:
    """About `_SAMPLES` hashes of each text, one text after the other; how many, and the bound they are below. Of short
    texts as many of shorter runs too."""
    texts = len(letters.bounds) - 1
    small = np.diff(letters.bounds) < np.asarray(_SMALL)[letters.spaced]
    owners, hashes, bounds = [], [], []
    for lengths, those in ((_RUN, np.ones(texts, bool)), (_HALF, small)):
        runs, fits = letters.runs(lengths, letters.spaced)
        fits &= those[letters.owner]
        bounds.append(
            np.minimum(_SAMPLES / np.maximum(np.bincount(letters.owner[fits], minlength=texts), 1), 1) * 2.0**32
        )
        values = (runs & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        taken = np.flatnonzero(fits & (values < bounds[-1][letters.owner]))
        owners.append(letters.owner[taken])
        hashes.append(values[taken])
        if not small.any():
            break
    owner = np.concatenate(owners)
    counts = np.bincount(owner, minlength=texts).astype(np.int32)
    return np.concatenate(hashes)[np.argsort(owner, kind="stable")], counts, bounds[0]


def _related(letters: Letters, i: I64, j: I64) -> Bools:
    runs, fits = letters.runs(_FINE, letters.spaced)
    here, there = _compared(letters, runs, fits, i, j), _compared(letters, runs, fits, j, i)
    script = letters.spaced[i]
    sizes = np.sort(np.stack([np.diff(letters.bounds)[side] for side in (i, j)]), axis=0)
    alike = (np.minimum(here[0], there[0]) >= np.asarray(COVERED)[script]) & (sizes[0] >= _EVEN * sizes[1])
    result: Bools = (letters.spaced[i] == letters.spaced[j]) & (
        (alike & (sizes[0] >= np.asarray(_SHORT)[script])) | (here[1] >= np.asarray(PASSAGE)[script])
    )
    return result


def _compared(letters: Letters, runs: U64, fits: Bools, one: I64, other: I64) -> tuple[NDArray[np.float64], I64]:
    """Of each row `one`, the share of its characters that lie in runs of `other`, and the most of them in one piece."""
    sizes, at = _places(letters.bounds, one)
    known_sizes, known_at = _places(letters.bounds, other)
    pair, known_pair = np.repeat(np.arange(len(one)), sizes), np.repeat(np.arange(len(one)), known_sizes)
    room = (known_sizes * _SPARSE + 1).astype(np.uint64)  # one of so many cells is taken, so one in so many lies
    begin = np.cumsum(room) - room
    table = np.zeros(int(room.sum()), bool)
    there = fits[known_at]
    table[(begin[known_pair] + runs[known_at] % room[known_pair])[there]] = True
    found = fits[at] & table[begin[pair] + runs[at] % room[pair]]
    ends = np.cumsum(sizes)
    start, place = (ends - sizes)[pair], np.arange(len(at))
    length = np.asarray(_FINE)[letters.spaced[one]][pair]
    total = np.append(0, np.cumsum(found))
    covered = total[place + 1] > total[np.maximum(place + 1 - length, start)]
    gap = np.maximum.accumulate(np.where(covered, start - 1, place))
    longest = np.zeros(len(one), np.int64)
    np.maximum.at(longest, pair, place - gap)
    return np.bincount(pair[covered], minlength=len(one)) / np.maximum(sizes, 1), longest


def _places(bounds: I64, rows: I64) -> tuple[I64, I64]:
    """Of each row how many characters it has, and the places of all of them."""
    sizes = np.diff(bounds)[rows]
    return sizes, np.arange(int(sizes.sum())) + np.repeat(bounds[rows] - (np.cumsum(sizes) - sizes), sizes)
