"""Subsets of the rows: a slice in Python's notation, or a random sample."""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

from tuneloop.base.errors import DataError
from tuneloop.base.files import printable

Item = TypeVar("Item")
_SLICE = r"\[\s*(-?\d{1,18})?\s*:\s*(-?\d{1,18})?\s*(?::\s*(\d{1,18})?\s*)?\]"


def row_slice(text: str) -> slice:
    """'[:1500]', '[100:200]' or '[::2]' as a slice; raises TL-DATA-ROWS for anything else.

    >>> row_slice("[100:200]")
    slice(100, 200, None)
    """
    match = re.fullmatch(rf"\s*{_SLICE}\s*", text)
    start, stop, step = (int(b) if b else None for b in (match.groups() if match else ("", "", "0")))
    if match is None or step == 0:
        raise DataError("TL-DATA-ROWS", where="data.rows", got=printable(text))
    return slice(start, stop, step)


def parted(path: str, rows: str | None) -> tuple[str, str | None]:
    """A path without the slice at its end, and the slice; a file of exactly that name is no slice.

    Raises TL-DATA-ROWS-TWICE where both say which rows.

    >>> parted("all.json[:1500]", None), parted("all.json", "[:5]")
    (('all.json', '[:1500]'), ('all.json', '[:5]'))
    """
    match = re.fullmatch(rf"(.+?)({_SLICE})", path)
    if match is None or os.path.lexists(path):
        return path, rows
    if rows is not None:
        raise DataError("TL-DATA-ROWS-TWICE", where=printable(path), rows=printable(rows))
    return match.group(1), match.group(2)


def taken(rows: Iterator[Item], wanted: slice) -> Iterator[Item]:
    """The rows of a slice; only a negative bound needs all of them in memory."""
    if any(bound is not None and bound < 0 for bound in (wanted.start, wanted.stop)):
        return iter(list(rows)[wanted])
    return islice(rows, wanted.start, wanted.stop, wanted.step)


def drawn(again: Callable[[], Iterator[Item]], size: int, seed: int, label: Callable[[Item], str]) -> Iterator[Item]:
    """A stratified random sample of `size` rows, in their order; each label in proportion.

    `again` begins a new pass: one counts the labels, one draws. Memory holds the sample (Vitter 1985, algorithm R).
    """
    counts = Counter(label(row) for row in again())
    quota = _shares(counts, size)
    held: dict[str, list[tuple[int, Item]]] = {name: [] for name in counts}
    chance = {name: random.Random(f"{seed}/{name}") for name in counts}
    met: Counter[str] = Counter()
    for number, row in enumerate(again()):
        name = label(row)
        met[name] += 1
        if len(held[name]) < quota[name]:
            held[name].append((number, row))
        elif quota[name]:
            place = chance[name].randrange(met[name])
            if place < quota[name]:
                held[name][place] = (number, row)
    for _, row in sorted((pair for pairs in held.values() for pair in pairs), key=lambda pair: pair[0]):
        yield row


def _shares(counts: Counter[str], size: int) -> dict[str, int]:
    """The sample size of each label: largest remainders, then rarer labels, get what rounding down leaves.

    >>> _shares(Counter(a=60, b=30, c=10), 5)
    {'a': 3, 'b': 1, 'c': 1}
    """
    total = counts.total()
    size = min(size, total)
    out = {name: count * size // total for name, count in counts.items()}
    left = size - sum(out.values())
    for name in sorted(counts, key=lambda name: (-(counts[name] * size % total), counts[name], name))[:left]:
        out[name] += 1
    return out
