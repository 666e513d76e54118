"""Row pairs that differ in at most a tenth of their characters or share a passage, which a split must not separate.

near.py compares word pairs, which is right for dropping: rows that share four of five say the same. For a split that is
not strict enough: one letter changed in every tenth word leaves a row readable and its answer known, but changes half
of its word pairs.

Three stages, as there. `Fingerprints` keeps about 24 hashes of a text's character runs (6 characters of a script
without blanks, else 9; of short texts also half of it; blanks and case aside), those below a bound that depends on the
text's length alone (Broder 1997; Schleimer, Wilkerson & Aiken 2003, "Winnowing"). Rows that share at least two are
candidates: `related` verifies that each is covered by runs of the other (3 characters, else 5), or that they share
`PASSAGE` in one piece. A run that many rows have is a set phrase and makes no candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tuneloop.data.dedupe.near import TextOf, all_pairs, distinct
from tuneloop.data.dedupe.shingles import BLANK, I64, LETTER, U64, chunks, looked_up, mixed, powers

Bools = NDArray[np.bool_]
COVERED = (0.78, 0.7)
"""Least share of each row's characters covered by runs of the other; here and below for scripts without blanks, and for
others."""
PASSAGE = (64, 220)
"""Fewest non-blank characters of a shared passage: 64 tokens."""
_SHORT = (20, 40)
"""Fewest characters of rows that are compared: shorter ones differ in meaning by less than a tenth."""
_EVEN = 0.8
"""Least ratio of the lengths of two rows that differ in a tenth."""
_SAMPLES = 24
_RUN, _HALF, _FINE = (6, 9), (3, 5), (3, 5)
_SMALL = (32, 80)
"""Characters below which a text has hashes of runs of half the length as well."""
_FREQUENT = 64
"""Rows with a run above which it counts as a set phrase."""
_SURE = 6
"""Fewest rows with a run from which its frequency is estimated."""
_ALL = 12
"""Most rows of a run that are compared in all pairs; of more, each with its neighbours."""
_PARTNERS = 2
"""Candidates of one row, those with most shared hashes first."""
_PAIRS, _CHARACTERS = 1024, 1 << 17
"""Pairs whose texts are read in one block, and about the characters that are compared in one block."""
_SPARSE = 128
"""Cells of a hash table of runs for each run in it."""


class Fingerprints:
    """Sampled hashes of texts in the order of `add`, about 100 bytes each; vectorised, so add many at a time."""

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
        """Candidate pairs i < j that share at least two hashes and differ in their group `known` [rows]."""
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
    """Codes j << 32 | i of the row pairs at each hash; `keys` are hash << 32 | row; they and the rows' bounds ascend.

    A row with a lower bound may have the run unseen: a run's frequency is estimated from the rows whose bound covers
    it.
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
    """Whether rows i < j differ in at most a tenth or share a passage, bool [pairs]; texts are read block by block."""
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
    """Texts as one array of numbers, one a character, case folded, without blanks; `spaced` [texts] is 1 where the
    script has blanks between words, else 0 (the index into a pair of settings)."""

    def __init__(self, texts: Sequence[str]) -> None:
        codes = np.frombuffer("\n".join((*texts, "")).encode("utf-32-le", "surrogatepass"), np.uint32)
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        values, kinds = looked_up(codes)
        nonblank = kinds != BLANK
        self.values: U64 = values[nonblank]
        self._letter, self._nonblank = kinds == LETTER, nonblank
        self.owner: I64 = np.repeat(np.arange(len(texts)), sizes + 1)[nonblank]
        self.bounds: I64 = np.searchsorted(self.owner, np.arange(len(texts) + 1))
        words = np.bincount(self.owner[kinds[nonblank] == LETTER], minlength=len(texts))
        self.spaced: I64 = (3 * words >= np.diff(self.bounds)).astype(np.int64)

    def begins(self) -> Bools:
        """Whether a word or a single-character unit begins at each character, bool [characters]."""
        inside = np.zeros(len(self._nonblank), bool)
        inside[1:] = self._letter[1:] & self._letter[:-1]
        starts: Bools = ~inside[self._nonblank]
        return starts

    def runs(self, lengths: Sequence[int], kind: I64) -> tuple[U64, Bools]:
        """The hash of the run that begins at each character, and whether it fits in its text; `kind` [texts] is the
        index of each text's run length in `lengths`."""
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
    """About `_SAMPLES` hashes of each text, text after text; their counts, and the bound they are below. Short texts
    have as many of shorter runs too."""
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
    close: Bools = (letters.spaced[i] == letters.spaced[j]) & (
        (alike & (sizes[0] >= np.asarray(_SHORT)[script])) | (here[1] >= np.asarray(PASSAGE)[script])
    )
    return close


def _compared(letters: Letters, runs: U64, fits: Bools, one: I64, other: I64) -> tuple[NDArray[np.float64], I64]:
    """The share of each row `one`'s characters covered by runs of `other`, and its longest covered piece."""
    sizes, at = _places(letters.bounds, one)
    known_sizes, known_at = _places(letters.bounds, other)
    pair, known_pair = np.repeat(np.arange(len(one)), sizes), np.repeat(np.arange(len(one)), known_sizes)
    cells = (known_sizes * _SPARSE + 1).astype(np.uint64)  # one of so many cells is taken, so one in so many lies
    begin = np.cumsum(cells) - cells
    table = np.zeros(int(cells.sum()), bool)
    there = fits[known_at]
    table[(begin[known_pair] + runs[known_at] % cells[known_pair])[there]] = True
    hits = fits[at] & table[begin[pair] + runs[at] % cells[pair]]
    ends = np.cumsum(sizes)
    start, place = (ends - sizes)[pair], np.arange(len(at))
    length = np.asarray(_FINE)[letters.spaced[one]][pair]
    total = np.append(0, np.cumsum(hits))
    covered = total[place + 1] > total[np.maximum(place + 1 - length, start)]
    gap = np.maximum.accumulate(np.where(covered, start - 1, place))
    longest = np.zeros(len(one), np.int64)
    np.maximum.at(longest, pair, place - gap)
    return np.bincount(pair[covered], minlength=len(one)) / np.maximum(sizes, 1), longest


def _places(bounds: I64, rows: I64) -> tuple[I64, I64]:
    """The sizes of the rows, and the places of all their characters."""
    sizes = np.diff(bounds)[rows]
    return sizes, np.arange(int(sizes.sum())) + np.repeat(bounds[rows] - (np.cumsum(sizes) - sizes), sizes)
