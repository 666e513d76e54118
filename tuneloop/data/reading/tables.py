"""Delimited text tables (CSV, TSV): delimiter, quoting, header, and rows.

Parsing a quoted row is in `quoting.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tuneloop.data.reading import shapes
from tuneloop.data.reading.quoting import records, split_line
from tuneloop.data.reading.rows import Flaw, NumberedRow


@dataclass(frozen=True, slots=True)
class Table:
    """The dialect and header of a CSV or TSV file."""

    delimiter: str
    quoted: bool
    header: bool
    names: tuple[str, ...]
    above: int = 0
    """Lines above the header, or above the first row where there is none: a comment, a title, Excel's `sep=;`."""


_DIALECTS = ((",", True), ("\t", False), ("\t", True), (";", True), ("|", True))
_SEP = re.compile(r'\ufeff?"?sep=(.)"?\s*', re.IGNORECASE)
_ABOVE = 10
"""Lines from the top among which the header is searched."""


def recognise(lines: list[str], columns: Mapping[str, str], header: int | None = None) -> Table | None:
    """The delimiter that gives most rows the width of the first one; None where no delimiter does.

    `header` is the line of the header if the recipe names it, 0 where there is none.
    """
    if separator := _SEP.fullmatch(lines[0]) if lines else None:
        rest = recognise(lines[1:], columns, header - 1 if header else header)
        chosen = _table(lines[1:], separator[1], True, columns, header - 1 if header else header)
        table = chosen[1] if chosen else rest
        return table and replace(table, above=table.above + 1)
    if header is None:
        above = _above(lines, columns)
        table = _best(lines[above:], columns, None)
        return table and replace(table, above=above + table.above)
    above = max(header - 1, 0)
    table = _best(lines[above:], columns, header)
    return table and replace(table, above=above + table.above)


def _above(lines: list[str], columns: Mapping[str, str]) -> int:
    """How many lines stand above a header that is known: comments, a title, blank lines."""
    for at, line in enumerate(lines[: _ABOVE + 1]):
        for delimiter, quoted in _DIALECTS:
            names = _names(_first([line], delimiter, quoted))
            below = next((x for x in lines[at + 1 :] if x.strip()), "")
            if len(names) > 1 and is_known(names, columns):
                fits = not at or len(_first([below], delimiter, quoted)) >= len(names)
                return at if fits else 0
    comments = 0
    while comments < min(len(lines) - 2, _ABOVE) and lines[comments].lstrip("\ufeff").startswith("#"):
        comments += 1
    if not comments:
        return 0
    delimiter = max((d for d, _ in _DIALECTS), key=lambda d: lines[comments].count(d))
    width = lines[comments].count(delimiter)
    return comments if width and all(line.count(delimiter) != width for line in lines[:comments]) else 0


def _best(lines: list[str], columns: Mapping[str, str], header: int | None) -> Table | None:
    best: tuple[bool, float, bool, int] = (False, 0.0, False, 0)
    table: Table | None = None
    for delimiter, quoted in _DIALECTS:
        attempt = _table(lines, delimiter, quoted, columns, header)
        if attempt and attempt[0] > best:
            best, table = attempt
    return table or _ragged(lines)


def _table(
    lines: list[str], delimiter: str, quoted: bool, columns: Mapping[str, str], header: int | None
) -> tuple[tuple[bool, float, bool, int], Table] | None:
    """A delimiter's score on these lines, and the table that it gives; None where it gives none."""
    first, rows = _first(lines, delimiter, quoted), _records(lines, delimiter, quoted)
    if not first or not rows:
        return None
    names = _names(first)
    known = is_known(names, columns)
    known = known or (len(names) == 1 and names[0].casefold() in shapes.TEXT and _one_column(rows))
    if (len(names) < 2 and not (known and delimiter == ",")) or (not known and _is_prose(rows)):
        return None
    body = rows[1:] if len(rows) > 1 else rows
    if _has_row_names(len(names), body) and (known or is_header(names)):
        names = ("", *names)
    literal = _records(lines, delimiter, False) if delimiter == "\t" and quoted else rows
    unquotes = rows != literal and _is_quoted(lines, delimiter)
    share = max(_share(body, len(names)), _share(literal[1:], len(names)) if unquotes else 0.0)
    if not (known or (share >= 0.8 and len(rows) > 1)):
        return None
    if header is None:
        numbered = bool(columns) and all(re.fullmatch(r"column_\d+", name) for name in columns.values())
        header = 0 if numbered and not known else int(known or (is_header(names) and not is_data(names, body)))
    named = unique(names if header else [""] * len(names))
    return (known, share, unquotes, len(names)), Table(delimiter, quoted, bool(header), named)


def _share(rows: Sequence[Sequence[str]], width: int) -> float:
    """Share of the rows, the first one among them, that have this many cells."""
    return (sum(len(row) == width for row in rows) + 1) / (len(rows) + 1)


def is_known(names: Sequence[str], columns: Mapping[str, str]) -> bool:
    return (bool(columns) and set(columns.values()) <= set(names)) or shapes.known(names)


def _names(first: Sequence[str]) -> tuple[str, ...]:
    """The cells of a header as names; a `#` in front of the first one is a comment's sign."""
    names = tuple(name.replace('"', "").strip().lstrip("\ufeff") for name in first)
    bare = tuple(name.lstrip("#").strip() if n == 0 else name for n, name in enumerate(names))
    return bare if bare != names and shapes.known(bare) else names


def _first(lines: list[str], delimiter: str, quoted: bool) -> list[str]:
    """The cells of the first line that is not blank; a header with a stray quote is read without its quotes."""
    for line, row in records(iter(lines), delimiter, quoted):
        if isinstance(row, Flaw):
            return split_line(lines[line - 1].replace('"', ""), delimiter, False)
        if any(cell.strip() for cell in row):
            return row
    return []


def is_data(names: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a cell of the first row is a value of its column: then it is a row, and no header.

    >>> is_data(["so good", "pos"], [["bad", "neg"], ["fine", "pos"]])
    True
    """
    others = [row for row in rows if len(row) == len(names) and tuple(row) != tuple(names)]
    return any(name and any(row[n].strip() == name for row in others) for n, name in enumerate(names))


def _counts_up(column: Sequence[str]) -> bool:
    """Whether the cells are the numbers of the rows.

    >>> _counts_up(["0", "1", "2"]), _counts_up(["0", "1", "1"])
    (True, False)
    """
    if len(column) < 2 or not all(cell.strip().isdecimal() for cell in column):
        return False
    numbers = [int(cell) for cell in column]
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _has_row_names(width: int, rows: Sequence[Sequence[str]]) -> bool:
    """Whether every row has one cell more than the header, in front, that counts the rows (as R writes tables)."""
    numbered = [row for row in rows if len(row) == width + 1]
    return len(numbered) >= 2 and len(numbered) >= 0.8 * len(rows) and _counts_up([row[0] for row in numbered])


def _is_quoted(lines: list[str], delimiter: str) -> bool:
    """Whether cells that begin with a quote are quoted ones, all but a few: else their quotes are part of the text.

    A quoted cell with a doubled quote or a line break in it had to be quoted, and weighs as much as a broken one.
    """
    good = bad = needed = 0
    for line, row in records(iter(lines), delimiter, True):
        raw = lines[line - 1]
        if not (raw.startswith('"') or f'{delimiter}"' in raw):
            continue
        if isinstance(row, Flaw):
            bad += 1
        else:
            good += 1
            needed += any('"' in cell or "\n" in cell.strip() for cell in row)
    return good > 0 and (bad <= 0.1 * good or bad <= needed)


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
    """Unique column names: a nameless column becomes column_2, the second `id` id_2.

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
    return [row for _, row in rows(lines, table) if isinstance(row, dict)]


def labels(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Text and label of a table of two columns, one of which has few and short values; of three, two texts and their
    label; else nothing. A column that counts or names the rows is none of them.

    >>> labels([{"a": "so good" * n, "b": str(n % 2)} for n in range(20)])
    {'text': 'a', 'label': 'b'}
    >>> labels([{"a": f"is it {n}", "b": f"it is {n}", "c": str(n % 2)} for n in range(20)])
    {'text': 'a', 'text_pair': 'b', 'label': 'c'}
    """
    columns = [name for name in (rows[0] if rows else ()) if not _names_rows([row.get(name, "") for row in rows])]
    if len(rows) < 10 or len(columns) not in (2, 3) or any(len(row) != len(rows[0]) for row in rows):
        return {}
    lengths: dict[str, int] = {}
    for column in columns:
        values = [row[column].strip() for row in rows]
        if len(set(values)) <= len(rows) / 5 and all(len(text) <= 20 for text in values):
            lengths[column] = sum(map(len, values))
    if not lengths or (len(columns) == 3 and len(lengths) != 1):
        return {}
    label = min(lengths, key=lambda column: lengths[column])
    texts = [column for column in columns if column != label]
    if len(texts) == 2 and not all(_has_words([row[column] for row in rows]) for column in texts):
        return {}
    return {**dict(zip(("text", "text_pair"), texts, strict=False)), "label": label}


def _names_rows(column: Sequence[str]) -> bool:
    """Whether the cells count the rows, or are a short name of each: r17, 4f2a."""
    if _counts_up(column):
        return True
    short = all(len(cell) <= 36 and cell.isascii() and re.fullmatch(r"[\w.-]*\d[\w.-]*", cell) for cell in column)
    return short and len(set(column)) == len(column)


def _has_words(column: Sequence[str]) -> bool:
    """Whether most cells are texts of several words, or of several signs where words have no blanks between them."""
    return 2 * sum(" " in cell.strip() or (len(cell) > 3 and not cell.isascii()) for cell in column) > len(column)


def _records(lines: list[str], delimiter: str, quoted: bool) -> list[list[str]]:
    """The rows that are not blank; a broken one counts as one of another width."""
    cells = (["\0"] if isinstance(row, Flaw) else row for _, row in records(iter(lines), delimiter, quoted))
    return [row for row in cells if any(cell.strip() for cell in row)]


def rows(lines: Iterable[str], table: Table) -> Iterator[NumberedRow]:
    """Every row with the number of the line where it starts: a dict, or a Flaw. Blank lines are no rows."""
    source = iter(lines)
    for _ in range(table.above):
        next(source, "")
    header_due = table.header
    width = len(table.names)
    for line, row in records(source, table.delimiter, table.quoted, width):
        if header_due:
            header_due = False
        elif isinstance(row, Flaw):
            yield line + table.above, row
        elif row:
            yield line + table.above, fitted(row, table.names)


def fitted(row: Sequence[str], names: Collection[str]) -> dict[str, str] | Flaw:
    """The cells under their names; empty cells beyond the last name are no cells."""
    if not any(cell.strip() for cell in row):
        return Flaw("empty row", "")
    if len(row) > len(names) and not any(cell.strip() for cell in row[len(names) :]):
        row = row[: len(names)]
    if len(row) != len(names):
        return Flaw("ragged row", f"{len(row)} / {len(names)}")
    return dict(zip(names, row, strict=True))
