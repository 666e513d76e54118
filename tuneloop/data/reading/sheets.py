"""Excel files (.xlsx): each sheet is a table, and every cell is read as the text that a CSV export would hold."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from typing import Any

from tuneloop.data.reading import archives, tables
from tuneloop.data.reading.containers import Blob
from tuneloop.data.reading.rows import Flaw
from tuneloop.data.reading.tables import Table
from tuneloop.errors import DataError
from tuneloop.language import t


@contextmanager
def _opened(blob: Blob) -> Iterator[Any]:
    import openpyxl

    try:
        with blob.path.open("rb") if blob.plain else io.BytesIO(blob.whole()) as source:
            with zipfile.ZipFile(source) as archive:
                sizes = [(info.file_size, info.compress_size) for info in archive.infolist()]
                archives.require_sane(blob.where, sum(a for a, _ in sizes), sum(b for _, b in sizes))
                listed = len(re.findall(rb"<(?:\w+:)?sheet\s", archive.read("xl/workbook.xml")))
            book = openpyxl.load_workbook(source, read_only=True, data_only=True)
            if len(book.sheetnames) != listed:  # the library passes over a sheet that is not there
                raise ValueError(t("{n} of {all} sheets are there", n=len(book.sheetnames), all=listed))
            yield book
            book.close()
    except DataError:
        raise
    except Exception as error:  # broken parts of it surface as any error of three libraries
        raise DataError("TL-DATA-EXCEL", where=blob.where, error=str(error) or type(error).__name__) from error


def names(blob: Blob) -> list[str]:
    """The sheets with at least one cell that is not empty."""
    with _opened(blob) as book:
        return [sheet.title for sheet in book.worksheets if next(_lines(sheet), None)]


def head(blob: Blob, count: int) -> tuple[Table, list[dict[str, str]]]:
    """The columns and the first rows of the blob's sheet."""
    with _opened(blob) as book:
        lines = _lines(_sheet(book, blob))
        first = next(lines, (0, [""]))[1]
        table = _table(first)
        held = [] if table.header else [tables.fitted(first, table.names)]
        for _, cells in lines:
            held.append(tables.fitted(_padded(cells, table), table.names))
            if len(held) >= count:
                break
        return table, [row for row in held if isinstance(row, dict)]


def rows(blob: Blob, table: Table) -> Iterator[tuple[int, dict[str, str] | Flaw]]:
    """Every row below the header with its number in the sheet."""
    with _opened(blob) as book:
        for n, (number, cells) in enumerate(_lines(_sheet(book, blob))):
            if n or not table.header:
                yield number, tables.fitted(_padded(cells, table), table.names)


def _sheet(book: Any, blob: Blob) -> Any:
    found = [sheet for sheet in book.worksheets if not blob.sheet or sheet.title == blob.sheet]
    if not found:
        raise DataError("TL-DATA-EMPTY", where=blob.where)
    return found[0]


def _table(first: list[str]) -> Table:
    cells = [cell.strip() for cell in first]
    header = tables.is_header([cell for cell in cells if cell])
    return Table("", False, header, tables.unique(cells if header else [""] * len(cells)))


def _padded(cells: list[str], table: Table) -> list[str]:
    return cells + [""] * (len(table.names) - len(cells))


def _lines(sheet: Any) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, with their number; empty cells at the end are no cells."""
    sheet.reset_dimensions()  # what a file says of its size is often wrong
    for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
        cells = [_text(value) for value in row]
        while cells and not cells[-1]:
            cells.pop()
        if any(cell.strip() for cell in cells):
            yield number, cells


def _text(value: Any) -> str:
    """A cell as text.

    >>> [_text(v) for v in (None, 1.0, 2.5, True, "x")]
    ['', '1', '2.5', 'TRUE', 'x']
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value)
