"""Format detection by content: container, encoding, shape. The extension is never used.

Nothing is converted here, and only the first rows are read (the encoding is checked over the whole file).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tuneloop.base.errors import DataError, os_words
from tuneloop.base.files import printable
from tuneloop.base.language import listed, t
from tuneloop.base.records import Kind
from tuneloop.data.kinds import KINDS
from tuneloop.data.reading import (
    arrays,
    chatlog,
    columnar,
    containers,
    encodings,
    grouping,
    paragraphs,
    shapes,
    sheets,
    tables,
)
from tuneloop.data.reading.containers import Blob, resolved
from tuneloop.data.reading.keys import BadRow, Notes
from tuneloop.data.reading.paragraphs import Unit
from tuneloop.data.reading.rows import convert
from tuneloop.data.reading.shapes import as_row
from tuneloop.data.reading.tables import Table
from tuneloop.data.reading.turns import SPEAKERS

Container = Literal[
    "json", "jsonl", "object", "csv", "tsv", "parquet", "arrow", "arrow stream", "xlsx", "txt", "chat log"
]
SAMPLE = 50
"""Rows of a file that are sampled."""
LINES = 200
"""Lines from which a table is detected."""
HEAD = 1 << 16
"""Characters that are read at a time."""
BUDGET = 16 << 20
"""Characters after which sampling ends, however few rows they are."""


@dataclass(frozen=True, slots=True)
class Guess:
    """The detected format of a file. `sure` is the share of the sampled rows that have the shape, 0 to 1."""

    container: Container
    encoding: str
    shape: str
    columns: tuple[str, ...]
    why: str
    sure: float
    roles: Mapping[str, str]
    kind: Kind | None = None
    """The record kind of its rows; None where that is not known."""
    rows_read: int = 0
    """Rows sampled."""
    compression: str = ""
    table: Table | None = None
    key: str = ""
    """Where a JSON object holds its rows."""
    unit: Unit = "line"
    """What a record of plain text is."""
    doubt: str = ""
    """A column of 0 and 1, or true and false, beside answers: it may say which are good, and is not used."""
    holds: str = ""
    """What that column holds, in words."""
    inside: tuple[str, ...] = ()
    """Keys of the turns in the sampled rows."""


@dataclass(frozen=True, slots=True)
class Wish:
    """The recipe's settings for a file: column roles, kind of rows, encoding, line of a table's header, roles of
    speakers. `verdicts`: what is trained needs answers that are known to be good or bad."""

    columns: Mapping[str, str] = field(default_factory=dict)
    task: Kind | None = None
    encoding: str | None = None
    header: int | None = None
    speakers: Mapping[str, str] = field(default_factory=dict)
    verdicts: bool = False
    unit: Unit | None = None
    """What one record of plain text is."""


def look(source: Path | Blob, wish: Wish | Mapping[str, str] | None = None) -> Guess:
    """The detected format of a file, a member or a sheet.

    Raises DataError where there is no readable text: TL-DATA-MISSING, -FOLDER, -EMPTY, -UNREADABLE, -BINARY, -NESTED,
    -ENCODING, -JSON, -LISTS, -ARRAYS, -PARQUET, -ARROW, -EXCEL, -ARCHIVE, -BOMB, -ROW-LONG, -WHOLE. A shape that is not
    known is no error here.
    """
    wish = wish if isinstance(wish, Wish) else Wish(wish or {})
    blob = source if isinstance(source, Blob) else Blob(source)
    try:
        blob, head = resolved(blob)
        return replace(_container(blob, head, wish), compression=blob.compression)
    except DataError as error:
        if error.code == "TL-DATA-TURNS":  # found in the rows, which do not know their file
            error.where = blob.where
        raise
    except UnicodeError as error:
        raise DataError("TL-DATA-ENCODING", where=blob.where, error=str(error)) from error
    except OSError as error:
        raise DataError("TL-DATA-UNREADABLE", where=blob.where, error=os_words(error)) from error


def _container(blob: Blob, head: bytes, wish: Wish) -> Guess:
    if containers.is_workbook(blob, head):
        table, held = sheets.head(blob, SAMPLE, wish.columns, wish.header)
        return _judged("xlsx", "", table.names, held, wish, table=table)
    if head.startswith(b"PK"):
        raise DataError("TL-DATA-NESTED", where=blob.where, kind="zip")
    kind = columnar.kind(head)
    if kind:
        names, rows = columnar.head(blob, kind, SAMPLE)
        container: Container = "parquet" if kind == "parquet" else "arrow" if kind == "arrow" else "arrow stream"
        return _judged(container, "", names, rows, wish)
    encoding = encodings.named(wish.encoding, blob.where) if wish.encoding else encodings.detect(blob, head)
    return _text(blob, encoding, wish)


def _text(blob: Blob, encoding: str, wish: Wish) -> Guess:
    start = _first(blob, encoding)
    if not start:
        raise DataError("TL-DATA-EMPTY", where=blob.where)
    if start == "[" and not _is_dated(blob, encoding) and not _lists(blob, encoding):
        rows = list(islice(arrays.elements(blob, encoding), SAMPLE))
        if not rows:
            raise DataError("TL-DATA-EMPTY", where=blob.where)
        _require_names(blob, rows)
        return _judged("json", encoding, _columns(rows), rows, wish)
    try:
        lines = list(_budgeted(islice((x for x in encodings.lines(blob, encoding) if x.strip()), SAMPLE)))
    except DataError as error:
        if error.code != "TL-DATA-ROW-LONG" or start != "{" or not error.where.endswith(":1"):
            raise
        try:  # one object, perhaps: it is read whole
            return _object(blob, encoding, wish, one_line=False)
        except DataError as object_error:
            raise (error if _many_lines(blob, encoding) else object_error) from None
    rows = [row for line in lines if (row := _parsed(line)) is not None]
    if len(lines) > 1 and (2 * len(rows) >= len(lines) or _parsed(lines[0]) is not None):
        return _judged("jsonl", encoding, _columns(rows), rows, wish)
    if start == "{":
        return _object(blob, encoding, wish, one_line=len(lines) == 1)
    return _table_or_prose(blob, encoding, wish)


def _lists(blob: Blob, encoding: str) -> bool:
    """Whether each line is a list of its own, of turns. Raises TL-DATA-ARRAYS for lists of plain values."""
    head = next(iter(encodings.chunks(blob, encoding, HEAD)), "").lstrip("\ufeff \t\r\n")
    first, _, rest = head.partition("\n")
    if rest.lstrip()[:1] != "[":
        return False
    with suppress(ValueError, RecursionError):
        _require_names(blob, [json.loads(first)])
    return isinstance(_parsed(first), dict)


def _require_names(blob: Blob, rows: Sequence[Any]) -> None:
    """Raise TL-DATA-ARRAYS where every row is a list of plain values."""
    if all(isinstance(row, list) and row and not any(isinstance(one, dict | list) for one in row) for row in rows):
        row = json.dumps(rows[0], ensure_ascii=False)
        raise DataError("TL-DATA-ARRAYS", where=blob.where, row=printable(row if len(row) < 80 else f"{row[:79]}…"))


def _first(blob: Blob, encoding: str) -> str:
    """The first character that is no blank; "" if there is none in the whole file."""
    for piece in encodings.chunks(blob, encoding, HEAD):
        text = piece.lstrip("\ufeff \t\r\n\v\f")
        if text:
            return text[0]
    return ""


def _is_dated(blob: Blob, encoding: str) -> bool:
    """Whether a text begins with a date in brackets, as messengers write it; JSON cannot."""
    head = next(encodings.chunks(blob, encoding, HEAD), "").lstrip("\ufeff \t\r\n")
    return re.match(r"\[\d+[-/.年]\d+[-/.月]\d+", head) is not None


def _many_lines(blob: Blob, encoding: str) -> bool:
    """Whether anything follows the first line."""
    ended = False
    for piece in encodings.chunks(blob, encoding, HEAD):
        _, end, rest = piece.partition("\n")
        if (ended and piece.strip()) or rest.strip():
            return True
        ended = ended or bool(end)
    return False


def _budgeted(lines: Iterable[str]) -> Iterator[str]:
    """Lines within the budget, but two where there are two: a long first row does not make a file one object."""
    left = BUDGET
    for n, line in enumerate(lines):
        yield line
        left -= len(line)
        if left < 0 and n:
            return


def _table_or_prose(blob: Blob, encoding: str, wish: Wish) -> Guess:
    lines = list(_budgeted(islice(encodings.lines(blob, encoding, ""), LINES)))
    if (
        wish.unit is None
        and wish.task in (None, "chat")
        and (log := chatlog.recognise(lines, wish.columns.get("assistant", "")))
    ):
        return _chat(blob, encoding, wish, *log)
    table = None if wish.unit else tables.recognise(lines, wish.columns, wish.header)
    if table is not None:
        container: Container = "tsv" if table.delimiter == "\t" else "csv"
        return _judged(container, encoding, table.names, tables.sample(lines, table), wish, table=table)
    if len(lines) == 1 and _is_scalar(lines[0]):
        return Guess("txt", encoding, "unknown", (), t("a single JSON value"), 0.0, {})
    unit = wish.unit or paragraphs.unit(lines, _size(blob, encoding))
    names = {"line": t("each line is a text"), "paragraph": t("texts with blank lines between them"),
             "indented": t("indented lines belong together"), "file": t("the file is one text")}  # fmt: skip
    why = t("neither JSON nor a table: plain text, {unit}", unit=names[unit])
    why += "" if wish.unit else t(" (else: `unit: {others}`)", others=" | ".join(x for x in _UNITS if x != unit))
    rows = [{"text": line} for line in lines if line.strip()][:SAMPLE]
    guess = _judged("txt", encoding, ("text",), rows, wish, unit=unit)
    return guess if guess.shape != "text" else replace(guess, why=why, sure=0.8)


_UNITS = ("line", "paragraph", "file")


def _size(blob: Blob, encoding: str) -> int:
    """The characters of a file, counted as far as it matters."""
    size = 0
    for piece in encodings.chunks(blob, encoding):
        size += len(piece)
        if size > paragraphs.LONGEST:
            break
    return size


def _chat(blob: Blob, encoding: str, wish: Wish, form: int, speakers: tuple[str, ...]) -> Guess:
    """A chat that somebody wrote down; `columns: {assistant: NAME}` says who the model is to learn from."""
    ours = [wish.columns["assistant"]] if "assistant" in wish.columns else chatlog.learner(speakers)
    if not ours:
        names = listed(speakers[:8])
        raise DataError("TL-DATA-CHAT", where=blob.where, speakers=printable(names), example=printable(speakers[-1]))
    rows = list(islice(chatlog.rows(blob, encoding, form, ours), SAMPLE))
    seen = tuple(map(printable, speakers))
    why = t("a chat of {speakers}; {ours} is the assistant", speakers=listed(seen[:8]), ours=printable(listed(ours)))
    kind: Kind | None = "chat" if set(wish.columns) <= {"assistant", "user"} else None
    roles = {"messages": "messages"}
    return Guess(
        "chat log", encoding, "messages", seen, why, 0.9, roles, kind, len(rows), key=json.dumps([form, *ours])
    )


def _is_scalar(text: str) -> bool:
    try:
        json.loads(text)
        return True
    except (ValueError, RecursionError):
        return False


def _object(blob: Blob, encoding: str, wish: Wish, *, one_line: bool) -> Guess:
    """A file that is one object: a single row, or a list of rows one level down."""
    document = arrays.load(blob, encoding)
    lists = {
        k: v for k, v in document.items() if isinstance(v, list) and v and all(isinstance(as_row(r), dict) for r in v)
    }
    nested = len(lists) == 1 and all(isinstance(r, list) for v in lists.values() for r in v)  # dialogues, no turns
    fits = not nested and (shapes.shape_of(document, wish.task).kind or set(wish.columns.values()) & set(document))
    if fits or not lists:
        return _judged("jsonl" if one_line else "object", encoding, _columns([document]), [document], wish)
    if len(lists) > 1:
        raise DataError("TL-DATA-LISTS", where=blob.where, keys=printable(listed(lists)))
    key, held = next(iter(lists.items()))
    return _judged("object", encoding, _columns(held[:SAMPLE]), held, wish, key=key)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    row = as_row(row)
    return row if isinstance(row, dict) else None


def _columns(rows: Iterable[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(k for row in map(as_row, rows) if isinstance(row, dict) for k in row))


def _judged(
    container: Container, encoding: str, names: tuple[str, ...], rows: Sequence[Any], wish: Wish, **more: Any
) -> Guess:
    """The guess, with the reason in words. `more`: table, key, unit."""
    rows = [as_row(row) for row in rows[:SAMPLE]]
    seen = tuple(printable(name) for name in names)

    def guessed(shape: str, kind: Kind | None, roles: Mapping[str, str], why: str, sure: float) -> Guess:
        unread, inside = _inside(rows, kind, roles, wish)
        if unread:
            why += t("; keys of turns not used: {keys}", keys=printable(listed(unread)))
        return Guess(container, encoding, shape, seen, why, sure, roles, kind, len(rows), inside=inside, **more)

    if wish.columns:
        kind = shapes.mapped(wish.columns, wish.task)
        return guessed("mapped", kind, dict(wish.columns), t("the recipe says which column is which"), 1.0)
    shape = shapes.recognise(rows or [dict.fromkeys(names)], wish.task)
    doubt = shapes.doubtful_verdict(rows) if shape.kind == "chat" and wish.task is None else ""
    if doubt and wish.verdicts:
        shape, doubt = replace(shape, kind="judged", roles={**shape.roles, "label": doubt}), ""
    if more.get("table") and shape.kind in (None, "text") and wish.task in (None, "label"):
        roles = tables.labels([row for row in rows if isinstance(row, dict)])
        if roles:
            two = "text_pair" in roles
            why = (
                t("three columns: two texts, and one with few and short values")
                if two
                else t("two columns, one of them with few and short values")
            )
            return guessed("labelled_pair" if two else "labelled", "label", roles, why, 0.7)
    if shape.kind is None:
        return guessed(*_unknown(rows), 0.0)
    if shape.name == shapes.TURN_ROWS:
        return guessed(shape.name, shape.kind, shape.roles, _by_turns(shape, rows, names), shape.share)
    n = round(shape.share * sum(isinstance(row, dict) for row in rows))
    why = _by_columns(shape, n, rows, names, more.get("table"))
    guess = guessed(shape.name, shape.kind, shape.roles, why, round(n / max(len(rows), 1), 2))
    return replace(guess, doubt=doubt, holds=shapes.verdict_words(rows) if doubt else "")


def _unknown(rows: Sequence[Any]) -> tuple[str, None, dict[str, str], str]:
    """The name of rows that have no known shape, and why they have none."""
    if n := shapes.many_labels(rows):
        why = t("{n} different labels in the first {total} rows: they hardly repeat", n=n, total=len(rows))
        return shapes.MANY_LABELS, None, {}, why
    return "unknown", None, {}, t("no known combination of columns")


def _by_columns(shape: shapes.RowShape, n: int, rows: Sequence[Any], names: Sequence[str], table: Table | None) -> str:
    """Why `n` of these rows have the shape, and what of them is not used."""
    used = listed(dict.fromkeys(shape.roles.values()))
    why = t("{n} of the file's first {total} rows have {columns}", n=n, total=len(rows), columns=printable(used))
    left = shapes.unused(shape, names)
    if left:
        why += t("; not used: {columns}", columns=printable(listed(left)))
    if table and table.above:
        why += t("; the table begins at line {line}", line=table.above + 1)
    if shape.name == shapes.JUDGED:
        why += t("; {column} says which answers are good (KTO)", column=shape.roles["label"])
    return why


def _by_turns(shape: shapes.RowShape, rows: Sequence[Any], names: Sequence[str]) -> str:
    """The reason how rows of one turn each are grouped; raises TL-DATA-TURNS where no column tells the dialogue."""
    if column := shape.roles.get("conversation"):
        return t("each row is one turn; {column} says of which dialogue", column=printable(column))
    speaker = shape.roles["role"]
    held = [row for row in rows if isinstance(row, dict)]
    speakers = [str(row.get(speaker)).strip().casefold() for row in held]
    column = shapes.like_dialogue(shape.roles, held)
    if column or len(rows) >= grouping.ONE or any(SPEAKERS.get(one) == "system" for one in speakers[1:]):
        roles = {**{role: shape.roles[role] for role in shapes.INSIDE}, "conversation": column or "your_id"}
        line = ", ".join(f"{role}: {name}" for role, name in roles.items())
        raise DataError("TL-DATA-TURNS", where="", columns=printable(listed(names)), line=printable(line))
    return t("each row is one turn, and no column says of which dialogue: all are one")


def _inside(
    rows: Sequence[Any], kind: Kind | None, roles: Mapping[str, str], wish: Wish
) -> tuple[list[str], tuple[str, ...]]:
    """Keys of turns in these rows that nothing reads, and all keys of turns."""
    if kind is None or not KINDS[kind].dialogue:
        return [], ()
    keys: dict[str, None] = {}
    notes = Notes()
    held = [(n, row) for n, row in enumerate(rows) if isinstance(row, dict)]
    by_turns = grouping.by_turns(roles)
    for _, row in grouping.dialogues(lambda: iter(held), roles) if by_turns else held:
        for cell in row.values() if isinstance(row, dict) else ():
            keys |= {str(key): None for turn in grouping.turns_in(cell) for key in turn}
        with suppress(BadRow):
            fixed = dict(wish.columns) if wish.columns and not by_turns else None
            convert(grouping.renamed(row, wish.columns, wish.speakers), kind, fixed, notes=notes)
    return list(notes.unread), tuple(keys)


def document(blob: Blob, wish: Wish) -> Guess:
    """The format of a text file that is one record, labelled by its folder."""
    blob, head = resolved(blob)
    encoding = encodings.named(wish.encoding, blob.where) if wish.encoding else encodings.detect(blob, head)
    why, roles = t("the folder's name is the label"), {"text": "text", "label": "label"}
    return Guess(
        "txt", encoding, "labelled", ("text", "label"), why, 0.9, roles, "label", 1, blob.compression, unit="file"
    )
