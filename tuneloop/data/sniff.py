"""What a file is, found out by its content: container, encoding, shape. The extension is never asked.

Nothing is converted here, and only the first rows are read (the encoding is checked over the whole file).
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO

from tuneloop.data import shapes
from tuneloop.errors import DataError
from tuneloop.language import t

Container = Literal["json", "jsonl", "object", "csv", "tsv", "parquet", "txt"]
SAMPLE = 50
"""Rows that are looked at."""
HEAD = 1 << 20
"""Characters of a JSON array that are looked at."""
FIELD = 2**31 - 1
"""Characters of a cell; Python's own limit of 131,072 is shorter than some answers."""

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_PACKED = ((b"\x1f\x8b", "gzip"), (b"PK\x03\x04", "zip / xlsx"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"),
           (b"7z\xbc\xaf", "7z"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"Rar!", "rar"), (b"%PDF", "PDF"),
           (b"\xd0\xcf\x11\xe0", "xls / doc"), (b"SQLite format 3\0", "SQLite"), (b"ARROW1", "Arrow"),
           (b"\x80\x04\x95", "pickle"), (b"\x80\x05\x95", "pickle"), (b"\x89PNG", "PNG"))  # fmt: skip
_COMMON = frozenset(
    "的一是了我不在人有他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天而能好都然没日"
    "于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现分将外但身些与高意进法此实回二理美点月明"
    "其种声全工己话儿者向情部正名定女问力机给等几很业最间新什打便位因重被走电四第门相次东政海口使教西再平真听世气信北少关并内加化"
    "，。？！、：；“”"
)


@dataclass(frozen=True, slots=True)
class Table:
    """How the cells of a csv or tsv file are told apart, and what its columns are called."""

    delimiter: str
    quoted: bool
    header: bool
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Guess:
    """What a file seems to be. `sure` is the share of the rows looked at that have the shape, 0 to 1."""

    container: Container
    encoding: str
    shape: str
    columns: tuple[str, ...]
    why: str
    sure: float
    roles: dict[str, str]
    table: Table | None = None
    key: str = ""
    """Where a JSON object holds its rows."""


def look(path: Path, columns: Mapping[str, str] | None = None) -> Guess:
    """What the file is. `columns` is the recipe's mapping; it overrules the shape, and helps to find a header.

    Raises DataError where there is no readable text: TL-DATA-MISSING, -FOLDER, -EMPTY, -UNREADABLE, -BINARY,
    -ENCODING, -JSON, -LISTS, -PARQUET. A shape that is not trained is no error here.
    """
    try:
        kind = _bytes(path)
        if kind == "parquet":
            names, rows = _parquet_head(path)
            return _judged("parquet", "", names, rows, columns)
        return _text(path, kind, columns or {})
    except UnicodeError as error:
        raise DataError("TL-DATA-ENCODING", where=shown(path), error=str(error)) from error
    except OSError as error:
        raise DataError("TL-DATA-UNREADABLE", where=shown(path), error=error.strerror or str(error)) from error


def shown(text: object) -> str:
    """A text that can be printed and written as UTF-8, whatever bytes were in a file name."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


@contextmanager
def opened(path: Path, encoding: str, newline: str | None = None) -> Iterator[TextIO]:
    """The file as text. Bytes that are not UTF-8 become lone surrogates, which are found row by row later."""
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    with path.open(encoding=encoding, errors=errors, newline=newline) as handle:
        yield handle


def load_json(path: Path, encoding: str) -> Any:
    """The whole file as one JSON value; raises TL-DATA-JSON with line and column."""
    try:
        with opened(path, encoding) as handle:
            return json.load(handle)
    except json.JSONDecodeError as error:
        raise DataError("TL-DATA-JSON", where=f"{shown(path)}:{error.lineno}:{error.colno}", error=error.msg) from error
    except UnicodeError:
        raise
    except (ValueError, RecursionError) as error:  # a number of 5000 digits; a million brackets
        raise DataError("TL-DATA-JSON", where=shown(path), error=str(error)) from error


def _bytes(path: Path) -> str:
    """ "parquet", or the encoding of the text."""
    if path.is_dir():
        raise DataError("TL-DATA-FOLDER", where=shown(path))
    if not path.exists() or "\0" in str(path):
        raise DataError("TL-DATA-MISSING", where=shown(path))
    if not path.is_file():
        raise DataError("TL-DATA-UNREADABLE", where=shown(path), error=t("not a regular file"))
    with path.open("rb") as handle:
        head = handle.read(4096)
    if head.startswith(b"PAR1"):
        return "parquet"
    packed = next((kind for mark, kind in _PACKED if head.startswith(mark)), "")
    if packed:
        raise DataError("TL-DATA-BINARY", where=shown(path), kind=packed)
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), "")
    if marked.startswith("utf-16") or marked == "utf-32":
        _must_decode(path, marked)
        return marked
    if b"\0" in head and path.stat().st_size % 2 == 0:
        for name in ("utf-16-le", "utf-16-be"):
            if _plausible_utf16(head, name):
                _must_decode(path, name)
                return name
    return marked or _eight_bit(path)


def _must_decode(path: Path, encoding: str) -> None:
    """Raise UnicodeDecodeError unless all of the file is in `encoding`."""
    with path.open(encoding=encoding, newline="") as handle:
        while handle.read(HEAD):
            pass


def _plausible_utf16(head: bytes, encoding: str) -> bool:
    text = head[: len(head) // 2 * 2].decode(encoding, "replace")
    return sum(_is_usual(c) for c in text) >= 0.9 * len(text)


def _is_usual(c: str) -> bool:
    """Whether a character is one that texts are made of, and not what wrong byte pairs give."""
    if c.isascii():
        return c.isprintable() or c in "\r\n\t"
    high = "\u2010" <= c <= "\u206f" or "\u3000" <= c <= "\u9fff" or "\uff00" <= c <= "\uffef"
    return high or (c.isalpha() and c < "\u0600")


def _eight_bit(path: Path) -> str:
    """UTF-8 (a few broken lines allowed: they go to the ledger row by row), or GB18030, or TL-DATA-ENCODING."""
    good = plain = bad = first = 0
    sample = b""
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            if line.isascii():
                plain += 1
                continue
            try:
                line.decode("utf-8")
                good += 1
            except UnicodeDecodeError:
                bad, first = bad + 1, first or number
                sample += line if len(sample) < 1 << 16 else b""
    if not bad or bad <= 0.1 * good:
        return "utf-8"
    if not good and _plausible_chinese(sample):
        try:
            _must_decode(path, "gb18030")
            return "gb18030"
        except UnicodeDecodeError:
            pass
    if bad <= 0.1 * (good + plain):
        return "utf-8"
    error = t(
        "{bad} of {n} lines are not UTF-8, and they do not read as GB18030 or UTF-16", bad=bad, n=good + plain + bad
    )
    raise DataError("TL-DATA-ENCODING", where=f"{shown(path)}:{first}", error=error)


def _plausible_chinese(sample: bytes) -> bool:
    """GB18030 reads almost any bytes; real Chinese has many of the commonest characters."""
    text = [c for c in sample.decode("gb18030", "replace") if not c.isascii()]
    chinese = sum("\u4e00" <= c <= "\u9fff" or "\u3000" <= c <= "\u303f" or "\uff00" <= c <= "\uffef" or c in "“”‘’…—·"
                  for c in text)  # fmt: skip
    return chinese >= 0.9 * len(text) and sum(c in _COMMON for c in text) >= 0.08 * len(text)


def _text(path: Path, encoding: str, columns: Mapping[str, str]) -> Guess:
    with opened(path, encoding) as handle:
        head = handle.read(HEAD)
    start = head.lstrip("\ufeff \t\r\n\v\f")[:1]
    if not start and len(head) < HEAD:
        raise DataError("TL-DATA-EMPTY", where=shown(path))
    if start == "[":
        rows = (_array_head(head) or load_json(path, encoding))[:SAMPLE]
        if not rows:
            raise DataError("TL-DATA-EMPTY", where=shown(path))
        guess = _judged("json", encoding, _columns(rows), rows, columns)
        if guess.shape == "unknown":
            load_json(path, encoding)  # broken JSON is the better news
        return guess
    with opened(path, encoding) as handle:
        lines = list(islice((line for line in handle if line.strip()), SAMPLE))
    rows = [row for line in lines if (row := _parsed(line)) is not None]
    if len(lines) > 1 and (2 * len(rows) >= len(lines) or _parsed(lines[0]) is not None):
        return _judged("jsonl", encoding, _columns(rows), rows, columns)
    if start == "{":
        return _object(path, encoding, columns, one_line=len(lines) == 1)
    with opened(path, encoding, newline="") as handle:
        lines = list(islice(handle, 200))
    table = _table(lines, columns)
    if table is None:
        why = t("neither JSON nor a table: plain text")
        return Guess("txt", encoding, "text", (), why, 0.8, {})
    container: Container = "tsv" if table.delimiter == "\t" else "csv"
    return _judged(container, encoding, table.names, list(cells(lines, table)), columns, table)


def _array_head(head: str) -> list[Any]:
    """The first rows of a JSON array, without reading the rest."""
    decoder = json.JSONDecoder()
    rows: list[Any] = []
    at = head.index("[") + 1
    try:
        while len(rows) < SAMPLE:
            at += len(head[at : at + 4096]) - len(head[at : at + 4096].lstrip(" \t\r\n,"))
            row, at = decoder.raw_decode(head, at)
            rows.append(row)
    except (ValueError, RecursionError):
        pass
    return rows


def _object(path: Path, encoding: str, columns: Mapping[str, str], *, one_line: bool) -> Guess:
    """A file that is one object: a single row, or a list of rows one level down."""
    value = load_json(path, encoding)
    lists = {k: v for k, v in value.items() if isinstance(v, list) and v and all(isinstance(r, dict) for r in v)}
    fits = shapes.shape_of(value)[0] != "unknown" or set(columns.values()) & set(value)
    if fits or not lists:
        return _judged("jsonl" if one_line else "object", encoding, _columns([value]), [value], columns)
    if len(lists) > 1:
        raise DataError("TL-DATA-LISTS", where=shown(path), keys=shown(", ".join(lists)))
    key, held = next(iter(lists.items()))
    return _judged("object", encoding, _columns(held[:SAMPLE]), held, columns, key=key)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _columns(rows: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(k for row in rows if isinstance(row, dict) for k in row))


def cells(lines: list[str], table: Table) -> Iterator[dict[str, str]]:
    """The sample's rows as dicts; rows of another width are left to the reader of the whole file."""
    rows = _records(lines, table.delimiter, table.quoted)
    for row in rows[1:] if table.header else rows:
        if len(row) == len(table.names):
            yield dict(zip(table.names, row, strict=True))


def quoting(quoted: bool) -> Literal[0, 3]:
    """The csv module's word for whether quotes mean anything."""
    return csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE


def _records(lines: list[str], delimiter: str, quoted: bool) -> list[list[str]]:
    csv.field_size_limit(FIELD)
    reader = csv.reader(lines, delimiter=delimiter, strict=quoted, quoting=quoting(quoted))
    out: list[list[str]] = []
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return [row for row in out if any(cell.strip() for cell in row)]
        except csv.Error:
            row = ["\0"]  # a broken row: it counts as one of another width
        out.append(row)


def _table(lines: list[str], columns: Mapping[str, str]) -> Table | None:
    """The delimiter that gives most rows the width of the first one; None where no delimiter does."""
    best: tuple[bool, float, bool, int] = (False, 0.0, False, 0)
    table: Table | None = None
    for delimiter, quoted in ((",", True), ("\t", False), ("\t", True), (";", True), ("|", True)):
        rows = _records(lines, delimiter, quoted)
        names = tuple(name.strip().lstrip("\ufeff") for name in rows[0]) if rows else ()
        known = (bool(columns) and set(columns.values()) <= set(names)) or shapes.known(names)
        if len(names) < 2 and not (known and delimiter == ","):
            continue
        share = sum(len(row) == len(names) for row in rows) / len(rows)
        unquotes = delimiter == "\t" and quoted and rows != _records(lines, "\t", False)
        score = (known, share, unquotes and share == 1.0, len(names))
        if (known or (share >= 0.8 and len(rows) > 1)) and score > best:
            header = known or all(_is_name(name) for name in names)
            best, table = score, Table(delimiter, quoted, header, _unique(names if header else [""] * len(names)))
    return table


def _is_name(cell: str) -> bool:
    """Whether a cell of the first row may be a column's name: short, no number, no end of a sentence."""
    try:
        float(cell)
        return False
    except ValueError:
        return len(cell) <= 40 and not any(c in ".。!！?？，；" for c in cell)


def _unique(names: Any) -> tuple[str, ...]:
    """Names with the nameless called column_2, the second `id` id_2.

    >>> _unique(["id", "", "id"])
    ('id', 'column_2', 'id_2')
    """
    out: list[str] = []
    for n, name in enumerate(names, 1):
        name = name or f"column_{n}"
        again = sum(o == name for o in names[: n - 1])
        out.append(f"{name}_{again + 1}" if again else name)
    return tuple(out)


def _parquet_head(path: Path) -> tuple[tuple[str, ...], list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            batch = next(file.iter_batches(batch_size=SAMPLE), None)
            return tuple(file.schema_arrow.names), batch.to_pylist() if batch else []
    except (pa.ArrowException, ValueError) as error:
        raise DataError("TL-DATA-PARQUET", where=shown(path), error=str(error)) from error


def _judged(
    container: Container,
    encoding: str,
    names: tuple[str, ...],
    rows: list[Any],
    columns: Mapping[str, str] | None,
    table: Table | None = None,
    key: str = "",
) -> Guess:
    """The guess, with the reason in words."""
    rows = rows[:SAMPLE]
    seen = tuple(shown(name) for name in names)
    if columns:
        why = t("the recipe says which column is which")
        return Guess(container, encoding, "mapped", seen, why, 1.0, dict(columns), table, key)
    shape = shapes.recognise(rows or [dict.fromkeys(names)])
    if table and shape.name in ("unknown", "text") and _has_labels(rows):
        why = t("two columns, one of them with few and short values")
        return Guess(container, encoding, "labelled", seen, why, 0.7, {}, table, key)
    if shape.name == "unknown":
        why = t("no known combination of columns")
        return Guess(container, encoding, "unknown", seen, why, 0.0, {}, table, key)
    used = ", ".join(dict.fromkeys(shape.roles.values())) or ", ".join(seen)
    n = round(shape.share * len(rows))
    why = t("{n} of the first {total} rows have {columns}", n=n, total=len(rows), columns=shown(used))
    left = shapes.unused(shape, names)
    if left and shape.roles:
        why += t("; not used: {columns}", columns=shown(", ".join(left)))
    return Guess(container, encoding, shape.name, seen, why, round(shape.share, 2), shape.roles, table, key)


def _has_labels(rows: list[Any]) -> bool:
    """Two columns, one of which has few short values: texts with labels."""
    if len(rows) < 10 or any(len(row) != 2 for row in rows):
        return False
    return any(
        len({row[c].strip() for row in rows}) <= len(rows) / 5 and all(len(row[c].strip()) <= 20 for row in rows)
        for c in rows[0]
    )
