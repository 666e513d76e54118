"""Tables in text: how their cells are told apart, what their columns are called, and their rows."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tuneloop.data.reading import containers, shapes
from tuneloop.data.reading.rows import Flaw

Row = tuple[int, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """How the cells of a csv or tsv file are told apart, and what its columns are called."""

    delimiter: str
    quoted: bool
    header: bool
    names: tuple[str, ...]


def recognise(lines: list[str], columns: Mapping[str, str]) -> Table | None:
    """The delimiter that gives most rows the width of the first one; None where no delimiter does."""
    best: tuple[bool, float, bool, int] = (False, 0.0, False, 0)
    table: Table | None = None
    for delimiter, quoted in ((",", True), ("\t", False), ("\t", True), (";", True), ("|", True)):
        rows = _records(lines, delimiter, quoted)
        names = tuple(name.strip().lstrip("\ufeff") for name in rows[0]) if rows else ()
        known = (bool(columns) and set(columns.values()) <= set(names)) or shapes.known(names)
        known = known or (len(names) == 1 and names[0].casefold() in shapes.TEXT and _one_column(rows))
        if (len(names) < 2 and not (known and delimiter == ",")) or (not known and _is_prose(rows)):
            continue
        share = sum(len(row) == len(names) for row in rows) / len(rows)
        unquotes = delimiter == "\t" and quoted and rows != _records(lines, "\t", False)
        score = (known, share, unquotes and share == 1.0, len(names))
        if (known or (share >= 0.8 and len(rows) > 1)) and score > best:
            header = known or is_header(names)
            best, table = score, Table(delimiter, quoted, header, unique(names if header else [""] * len(names)))
    return table or _ragged(lines)


def _is_prose(rows: list[list[str]]) -> bool:
    """Whether the cells are the parts of sentences: a blank after each comma, and a first row of many words."""
    later = [cell for row in rows for cell in row[1:]]
    return bool(later) and not _is_short(rows[0]) and sum(c.startswith(" ") for c in later) >= 0.9 * len(later)


def _is_short(cells: Sequence[str]) -> bool:
    """Whether no cell has more than two words, as names of columns seldom do."""
    return all(len(cell.split()) <= 2 for cell in cells)


def _ragged(lines: list[str]) -> Table | None:
    """A table whose rows have many widths: a header, and short cells in every line. Prose is not like that."""
    for delimiter in (",", "\t", ";", "|"):
        rows = _records(lines, delimiter, True)
        if len(rows) < 2 or any(len(row) < 2 for row in rows):
            continue
        cells = [cell for row in rows for cell in row]
        if _is_short(rows[0]) and is_header(rows[0]) and sum(len(cell) <= 16 for cell in cells) >= 0.9 * len(cells):
            return Table(delimiter, True, True, unique(cell.strip() for cell in rows[0]))
    return None


def _one_column(rows: list[list[str]]) -> bool:
    """Whether this is a CSV export of a single column, and not a text that happens to begin with its name."""
    return len(rows) > 1 and all(len(row) == 1 for row in rows)


def is_header(cells: Sequence[str]) -> bool:
    """Whether the first row may hold the columns' names: short, no numbers, no ends of sentences."""
    return all(_is_name(cell) for cell in cells)


def _is_name(cell: str) -> bool:
    try:
        float(cell)
        return False
    except ValueError:
        return len(cell) <= 40 and not any(c in ".。!！?？，；" for c in cell)


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """Names with the nameless called column_2, the second `id` id_2.

    >>> unique(["id", "", "id"])
    ('id', 'column_2', 'id_2')
    """
    out: list[str] = []
    for n, name in enumerate(names, 1):
        wanted = name = name or f"column_{n}"
        again = 1
        while wanted in out:
            again += 1
            wanted = f"{name}_{again}"
        out.append(wanted)
    return tuple(out)


def sample(lines: list[str], table: Table) -> list[dict[str, str]]:
    """The rows among the first lines as dicts; rows of another width are left to the reader of the whole file."""
    rows = _records(lines, table.delimiter, table.quoted)
    rows = rows[1:] if table.header else rows
    return [dict(zip(table.names, row, strict=True)) for row in rows if len(row) == len(table.names)]


def labels(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Text and label of a table of two columns, one of which has few and short values; else nothing.

    >>> labels([{"a": "so good" * n, "b": str(n % 2)} for n in range(20)])
    {'text': 'a', 'label': 'b'}
    """
    if len(rows) < 10 or any(len(row) != 2 for row in rows):
        return {}
    found: dict[str, int] = {}
    for column in rows[0]:
        values = [row[column].strip() for row in rows]
        if len(set(values)) <= len(rows) / 5 and all(len(value) <= 20 for value in values):
            found[column] = sum(map(len, values))
    if not found:
        return {}
    label = min(found, key=lambda column: found[column])
    text = next(column for column in rows[0] if column != label)
    return {"text": text, "label": label}


def _quoting(quoted: bool) -> Literal[0, 3]:
    return csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE


def _reader(lines: Iterable[str], delimiter: str, quoted: bool) -> Any:
    csv.field_size_limit(containers.ROW)  # Python's own limit of 131,072 is shorter than some answers
    return csv.reader(lines, delimiter=delimiter, strict=quoted, quoting=_quoting(quoted))


def _records(lines: list[str], delimiter: str, quoted: bool) -> list[list[str]]:
    reader = _reader(lines, delimiter, quoted)
    out: list[list[str]] = []
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return [row for row in out if any(cell.strip() for cell in row)]
        except csv.Error:
            row = ["\0"]  # a broken row: it counts as one of another width
        out.append(row)


def rows(lines: Iterable[str], table: Table) -> Iterator[Row]:
    """Every row with the number of the line where it starts: a dict, or a Flaw. Blank lines are no rows."""
    reader = _reader(lines, table.delimiter, table.quoted)
    header_due = table.header
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, Flaw("broken CSV", f"{line}-{reader.line_num}: {error}")
            continue
        if not row:
            continue
        if header_due:
            header_due = False
        else:
            yield line, fitted(row, table.names)


def fitted(row: Sequence[str], names: Collection[str]) -> dict[str, str] | Flaw:
    """The cells under their names."""
    if not any(cell.strip() for cell in row):
        return Flaw("empty row", "")
    if len(row) != len(names):
        return Flaw("ragged row", f"{len(row)} / {len(names)}")
    return dict(zip(names, row, strict=True))
