"""Excel files (.xlsx): each sheet is a table, and every cell is read as the text that Excel shows in it."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from tuneloop.base.errors import DataError
from tuneloop.base.language import t
from tuneloop.data.reading import archives, cells, tables
from tuneloop.data.reading.containers import Blob
from tuneloop.data.reading.rows import Filled, Flaw
from tuneloop.data.reading.tables import Table


@contextmanager
def _opened(blob: Blob) -> Iterator[Any]:
    import openpyxl

    try:
        with blob.path.open("rb") if blob.is_plain_file else io.BytesIO(blob.read_bytes()) as source:
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


def head(
    blob: Blob, count: int, columns: Mapping[str, str], header: int | None = None
) -> tuple[Table, list[dict[str, str]]]:
    """The columns and the first rows of the blob's sheet. `header` is the row of the header, 0 where there is none."""
    with _opened(blob) as book:
        first = list(islice(_lines(_sheet(book, blob)), count + _ABOVE))
    table = _table(first, columns, header)
    held = [row for _, row in _below(iter(first), table)]
    return table, [row for row in held if isinstance(row, dict)][:count]


def rows(blob: Blob, table: Table) -> Iterator[tuple[int, dict[str, str] | Flaw]]:
    """Every row below the header with its number in the sheet."""
    with _opened(blob) as book:
        yield from _below(_lines(_sheet(book, blob)), table)


def _below(lines: Iterator[tuple[int, list[str]]], table: Table) -> Iterator[tuple[int, dict[str, str] | Flaw]]:
    header_due = table.header
    for number, row in lines:
        if number <= table.above:
            continue
        if header_due:
            header_due = False
            continue
        cells_by_name: dict[str, str] | Flaw = tables.fitted(_padded(row, table), table.names)
        if isinstance(row, _Row) and isinstance(cells_by_name, dict):
            cells_by_name = Filled(cells_by_name, [table.names[at] for at in row.filled if at < len(table.names)])
        yield number, cells_by_name


def _sheet(book: Any, blob: Blob) -> Any:
    sheets = [sheet for sheet in book.worksheets if not blob.sheet or sheet.title == blob.sheet]
    if not sheets:
        raise DataError("TL-DATA-EMPTY", where=blob.where)
    return sheets[0]


_ABOVE = 10
"""Rows from the top among which the header is searched."""


def _table(lines: list[tuple[int, list[str]]], columns: Mapping[str, str], header: int | None) -> Table:
    """Where the header is and what its columns are called: a title may stand above it."""
    at = _header_at(lines, columns) if header is None else next((n for n, x in enumerate(lines) if x[0] >= header), 0)
    if not lines:
        return Table("", False, False, ())
    number, first = lines[at]
    names = [cell.strip() for cell in first]
    others = [row + [""] * (len(first) - len(row)) for _, row in lines[at + 1 :]]
    if header is None:
        named = tables.is_header([name for name in names if name]) and not tables.is_data(names, others)
    else:
        named = header > 0
    widest = max(len(first), *map(len, others)) if others and not named else len(first)
    return Table("", False, named, tables.unique(names if named else [""] * widest), number - 1)


def _header_at(lines: list[tuple[int, list[str]]], columns: Mapping[str, str]) -> int:
    """The first row with known names; else the first one that is as wide as the next."""
    for at, (_, row) in enumerate(lines[:_ABOVE]):
        names = [cell.strip() for cell in row]
        if len(names) > 1 and tables.is_known(names, columns):
            return at
    widths = [len(row) for _, row in lines]
    if widths and widths[0] == 1 and max(widths) > 1:
        return next(n for n, width in enumerate(widths) if width > 1)
    return 0


def _padded(row: list[str], table: Table) -> list[str]:
    return row + [""] * (len(table.names) - len(row))


def _text(cell: Any) -> str:
    return cells.shown(cell.value, cell.number_format) if cell.value is not None else ""


class _Row(list[str]):
    """The cells of a row; those at the places `filled` have the value of a merged cell that begins above."""

    filled: list[int]


_MERGED = re.compile(rb'<(?:\w+:)?mergeCell\s[^>]*?ref="([A-Z]+)(\d+):[A-Z]+(\d+)"')
_PIECE = 1 << 20


def _merged(sheet: Any) -> dict[int, list[tuple[int, int]]]:
    """By column, from 0: the first and the last row of each cell that is merged over several rows."""
    from openpyxl.utils import column_index_from_string

    out: dict[int, list[tuple[int, int]]] = {}
    with sheet.parent._archive.open(sheet._worksheet_path) as part:  # a sheet that is read as a stream does not tell
        rest = b""
        while piece := part.read(_PIECE):
            window = rest + piece
            for column, first, last in _MERGED.findall(window):
                if int(last) > int(first):
                    out.setdefault(column_index_from_string(column.decode()) - 1, []).append((int(first), int(last)))
            rest = window[max(window.rfind(b"<"), 0) :]
    return out


class _Merged:
    """The values of a sheet's merged cells, for the rows of them below the first."""

    def __init__(self, sheet: Any) -> None:
        ranges = _merged(sheet)
        self.begins = {(first, at): last for at, spans in ranges.items() for first, last in spans}
        self.columns = list(ranges)
        self.open: dict[int, tuple[int, str]] = {}

    def filled(self, number: int, texts: list[str], *, header: bool) -> list[str]:
        """The cells of a row that is not empty; a cell merged in the first row is a name, and its value stays there."""
        places = []
        for at in self.columns:
            text = texts[at] if at < len(texts) else ""
            last, content = self.open.get(at, (0, ""))
            if (number, at) in self.begins and not header:
                self.open[at] = (self.begins[number, at], text)
            elif number <= last and content and not text:
                texts += [""] * (at + 1 - len(texts))
                texts[at] = content
                places.append(at)
        if not places:
            return texts
        row = _Row(texts)
        row.filled = places
        return row


def _lines(sheet: Any) -> Iterator[tuple[int, list[str]]]:
    """Non-empty rows with their numbers, without trailing empty cells."""
    sheet.reset_dimensions()  # what a file says of its size is often wrong
    merged, header = _Merged(sheet), True
    for number, row in enumerate(sheet.iter_rows(), 1):
        texts = [_text(cell) for cell in row]
        while texts and not texts[-1]:
            texts.pop()
        if any(text.strip() for text in texts):
            yield number, merged.filled(number, texts, header=header) if merged.columns else texts
            header = False
