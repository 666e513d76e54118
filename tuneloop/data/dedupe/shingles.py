"""Shingles of a text: hashed pairs of neighbouring characters (Chinese) or words (English); Jaccard similarity.

A text is read as a row of units. A unit is one character of a script that puts no blanks between words (Han, Kana,
Hangul, Thai, Lao, Khmer, Burmese, Tibetan, Yi), one punctuation mark or symbol, or one word: a run of other letters,
digits and accents. Blanks and control characters only separate. Every character counts in its compatibility form, case
folded, where that is one character (full-width A is a, but ß is not ss).

A shingle is two units that stand next to each other; the text's edge is a unit too, before the first and after the
last, so that n units make n + 1 shingles and even the empty text has one. One unit replaced inside a text of n units
takes away two shingles and brings two new ones: Jaccard (n - 1) / (n + 3). In 40 Chinese characters, one replaced
leaves 0.91, two 0.82, three 0.74 (three that touch, 0.83).

Nothing here loops over characters: a chunk of texts is one array of code points.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

CHUNK = 1 << 16
"""Characters of one chunk: its arrays stay in the processor's cache."""
_TABLE = 0x20000
"""Code points with an entry of their own; those above are rare Han characters and unnamed ones: one unit each."""
_UNSPACED = (
    (0x0E00, 0x109F), (0x1100, 0x11FF), (0x1780, 0x17FF), (0x19E0, 0x19FF), (0x2E80, 0xA4CF), (0xA960, 0xA97F),
    (0xAA60, 0xAA7F), (0xAC00, 0xD7FF), (0xF900, 0xFAFF), (0xFF66, 0xFFDC), (0x16FE0, 0x18DFF), (0x1AFF0, 0x1B2FF),
)  # fmt: skip
BLANK, LETTER, ALONE = 0, 1, 2
_BASE = 0x9E6C63D0876A9A47
"""Base of the polynomial hash of a word; odd, so that it has an inverse modulo 2**64."""
_EDGE = 0xD1B54A32D192ED03


def mixed(values: U64) -> U64:
    """Each number hashed to all 64 bits (the finalizer of splitmix64; Steele, Lea & Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shingles(text: str) -> U64:
    """The set of a text's shingles, sorted.

    >>> len(shingles("")), len(shingles("好")), len(shingles("今天天气很好")), len(shingles("Fine weather today."))
    (1, 2, 7, 5)
    >>> (shingles("Ｈello,  WORLD") == shingles("hello ，world")).all()
    np.True_
    """
    return np.unique(shingled([text])[0])


def jaccard(one: str, other: str) -> float:
    """The Jaccard similarity of two texts: shared shingles divided by the union.

    >>> jaccard("word", "ward"), round(jaccard("今天天气很好我们出去走走", "今天天气很好他们出去走走"), 2)
    (0.0, 0.73)
    """
    a, b = shingles(one), shingles(other)
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def chunks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(begin, end) of runs of texts with about CHUNK characters, at least one text each."""
    ends = np.cumsum(np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts)))
    at = 0
    while at < len(texts):
        done = int(ends[at - 1]) if at else 0
        end = max(int(np.searchsorted(ends, done + CHUNK, "right")), at + 1)
        yield at, end
        at = end


def shingled(texts: Sequence[str]) -> tuple[U64, I64]:
    """The shingles of the texts in order, with repeats, and the bounds of each text."""
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    joined = "\n".join(("", *texts, ""))
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    edges = np.concatenate(([0], np.cumsum(sizes + 1)))
    values, kinds = looked_up(codes)
    values[edges], kinds[edges] = _EDGE, ALONE
    begins = kinds == ALONE
    letter = kinds == LETTER
    begins[1:] |= letter[1:] & ~letter[:-1]
    starts = np.flatnonzero(begins)
    units = _numbers(values, starts)
    pairs = mixed(units[:-1] * np.uint64(_BASE) + units[1:])
    return pairs, np.searchsorted(starts, edges)


def looked_up(codes: NDArray[np.uint32]) -> tuple[U64, NDArray[np.uint8]]:
    """A random number for each character (0 for blanks), and its kind."""
    numbers, kinds = _tables()
    if not len(codes) or int(codes.max()) < _TABLE:
        return numbers.take(codes), kinds.take(codes)
    near = np.minimum(codes, _TABLE - 1)
    far = codes >= _TABLE
    values, classes = numbers.take(near), kinds.take(near)
    values[far], classes[far] = mixed(codes[far].astype(np.uint64)), ALONE
    return values, classes


def _numbers(values: U64, starts: I64) -> U64:
    """The polynomial hash of each unit: the sum of character times _BASE**place, with places from the unit's start.

    Summed with places that count from the chunk's start, then divided by _BASE**start, all modulo 2**64.
    """
    power, inverses = powers(max(len(values), CHUNK + 2))
    total = np.cumsum(values * power[: len(values)])
    last = np.append(starts[1:] - 1, len(values) - 1)
    units = total[last]
    units[1:] -= total[last[:-1]]
    numbers: U64 = units * inverses[starts]
    return numbers


@cache
def _tables() -> tuple[U64, NDArray[np.uint8]]:
    folded = np.arange(_TABLE, dtype=np.uint64)
    kinds = np.empty(_TABLE, np.uint8)
    for code in range(_TABLE):
        char = _single(unicodedata.normalize("NFKC", chr(code)), chr(code))
        char = _single(char.casefold(), char)
        folded[code], kinds[code] = ord(char), _kind(char)
    numbers = mixed(folded * np.uint64(_BASE) + np.uint64(1))
    numbers[kinds == BLANK] = 0
    return numbers, kinds


def _single(form: str, char: str) -> str:
    return form if len(form) == 1 else char


def _kind(char: str) -> int:
    category, code = unicodedata.category(char), ord(char)
    if category[0] == "Z" or category in ("Cc", "Cf") or 0xFE00 <= code <= 0xFE0F:
        return BLANK
    unspaced = code >= _TABLE or any(low <= code <= high for low, high in _UNSPACED)
    return LETTER if category[0] in "LMN" and not unspaced else ALONE


@cache
def _tabled_powers() -> tuple[U64, U64]:
    return _made_powers(CHUNK + 2)


def powers(size: int) -> tuple[U64, U64]:
    """_BASE**k and its inverse for k below `size`."""
    return _tabled_powers() if size <= CHUNK + 2 else _made_powers(size)


def _made_powers(size: int) -> tuple[U64, U64]:
    tables = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        factors = np.full(size, base, np.uint64)
        factors[0] = 1
        tables.append(np.cumprod(factors, dtype=np.uint64))
    return tables[0], tables[1]
