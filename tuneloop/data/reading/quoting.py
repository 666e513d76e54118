"""CSV rows with quoted cells, and recovery from stray quotes.

Inside quotes a line break is text, so one quote too many swallows the lines behind it. A row of several lines is
therefore checked against the single-line rows; where it is suspected, its first line alone is dropped and parsing goes
on at the next.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

from tuneloop.data.reading import containers
from tuneloop.data.reading.rows import Flaw

_LOOK = 64
"""Lines of a multi-line row that are checked."""
_ROWS = 1000
"""Single-line rows from which the column statistics are taken."""
_VALUES = 32
"""Distinct values from which on a column holds no labels."""


class _Lines:
    """A line iterator with pushback; `taken` are the lines of the row that is being read."""

    def __init__(self, source: Iterator[str]) -> None:
        self.source, self.back, self.taken = source, deque[str](), list[str]()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.back.popleft() if self.back else next(self.source)
        self.taken.append(line)
        return line


def _quoting(quoted: bool) -> Literal[0, 3]:
    return csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE


def split_line(line: str, delimiter: str, quoted: bool) -> list[str]:
    """The cells of one line.

    >>> split_line('a,"b, c"', ",", True), split_line('a,"b', ",", False)
    (['a', 'b, c'], ['a', '"b'])
    """
    return next(_reader(iter([line]), delimiter, quoted), [])


def _reader(lines: Iterator[str], delimiter: str, quoted: bool) -> Any:
    csv.field_size_limit(containers.ROW)  # Python's own limit of 131,072 is shorter than some answers
    return csv.reader(lines, delimiter=delimiter, strict=quoted, quoting=_quoting(quoted))


def records(
    source: Iterator[str], delimiter: str, quoted: bool, width: int = 0
) -> Iterator[tuple[int, list[str] | Flaw]]:
    """Every row with the number of the line where it starts, from 1: its cells, or a Flaw ("broken CSV").

    A blank line is a row without cells. `width` is the number of cells of a row; by default that of the first one.
    """
    lines = _Lines(source)
    reader = _reader(lines, delimiter, quoted)
    seen = _Seen(width)
    number = 1
    while True:
        lines.taken.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, Flaw("broken CSV", _given_up(lines, number, str(error)))
            number += 1
            continue
        count = len(lines.taken)
        if count == 1:
            seen.add(row)
        elif seen.suspects(lines.taken, row, delimiter):
            yield number, Flaw("broken CSV", _given_up(lines, number, "a stray quote"))
            number += 1
            continue
        else:
            seen.long += 1
        yield number, row
        number += count


def _given_up(lines: _Lines, number: int, error: str) -> str:
    """Push back all lines of a broken row but the first, which is dropped; returns the ledger's detail."""
    lines.back.extendleft(reversed(lines.taken[1:]))
    return f"{number}: {error}"


class _Seen:
    """Column statistics of the single-line rows: their width, and each column's distinct values."""

    def __init__(self, width: int) -> None:
        self.width, self.rows, self.long = width, 0, 0
        self.values: list[set[str]] = []

    def add(self, row: list[str]) -> None:
        self.rows += 1
        if self.rows > _ROWS or not row:
            return
        self.width = self.width or len(row)
        if len(row) != self.width:
            return
        self.values = self.values or [set() for _ in row]
        for known, cell in zip(self.values, row, strict=True):
            if len(known) < _VALUES:
                known.add(cell)

    def suspects(self, taken: list[str], row: list[str], delimiter: str) -> bool:
        """Whether the lines of a row that runs over several are rows themselves, swallowed by a stray quote.

        They are where each line, its quotes left aside, has the right width, no cell that begins with a blank, and
        known values in the columns of labels. Without such a column they are where no other row leaves its line.
        """
        width = self.width or len(row)
        alone = [split_line(line, delimiter, False) for line in taken[1:_LOOK]]
        if width < 2 or any(len(part) != width for part in alone):
            return len(row) != width and any(len(part) == width for part in alone)
        if len(split_line(taken[0], delimiter, False)) != width:
            return False
        if any(cell[:1] in (" ", "\t", "\u3000") for part in alone for cell in part):
            return False
        few = min(_VALUES, self.rows // 4)
        labels = [(n, known) for n, known in enumerate(self.values) if 0 < len(known) < few]
        if labels:
            return all(part[n].strip().strip('"') in known for part in alone for n, known in labels)
        return len(alone) > 2 or (self.rows >= 20 and not self.long)
