"""Files to be answered, row by row: what each row asks, and what answer stands in it already.

They are read as training data are, in every format; but a row needs no answer, and none is left out: one that cannot be
asked says why. Which columns hold the question is seen in the row's own columns.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tuneloop.base.errors import DataError
from tuneloop.base.files import printable, sha256_of
from tuneloop.base.language import listed, t
from tuneloop.base.records import Kind, Record
from tuneloop.data.ledger import words
from tuneloop.data.reading import formats, places
from tuneloop.data.reading.containers import Blob, resolved
from tuneloop.data.reading.keys import BadRow
from tuneloop.data.reading.rows import Flaw, convert
from tuneloop.data.reading.shapes import LABEL, OPTIONAL, PAIRS, PROMPT, TEXT, TEXT_PAIRS, as_row, find_column, layout
from tuneloop.data.reading.sniff import Guess, Wish, look
from tuneloop.recipe.schema import DataFile

ABSENT = "\0absent"
"""A column that stands for an answer or a label that a row has not."""
QUESTIONS = (*(name for fields in PAIRS.values() for name in fields["user"]), *PROMPT, *TEXT)
"""Columns that may hold what is asked, where a row has no answer beside it."""
HEADER = 1000
"""Characters of a first line that may be a header."""
CHECKED = 50
"""Rows of which one must have a question, or the file has none."""


@dataclass(frozen=True, slots=True)
class InputRow:
    """One row of an input: where it lies, its own columns, and what it asks.

    `record` is None where it cannot be asked; then `problem` says why. Its last answer, or label, is `reference`.
    """

    file: str
    line: int
    columns: Mapping[str, Any]
    record: Record | None = None
    reference: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of an input, and how it is read. `label` is its name."""

    label: str
    path: Path
    blob: Blob
    guess: Guess

    @property
    def table(self) -> bool:
        """Whether every row has the same columns."""
        return self.guess.table is not None or self.guess.container in ("parquet", "arrow", "arrow stream")


def require_rows(path: str) -> None:
    """Raise what `places.find` and `sniff.look` raise for a path that leads nowhere, or to a file without a row."""
    for place in places.find(DataFile(path=path)):
        if not place.left_out:
            look(resolved(Blob(place.path))[0], Wish())


def input_files(path: str, kind: Kind, column: str | None = None) -> list[InputFile]:
    """The files that a path names. Raises what `places.find` and `sniff.look` raise, and TL-DATA-QUESTIONS for a file
    none of whose first rows says what is asked."""
    located = [place for place in places.find(DataFile(path=path)) if not place.left_out]
    names = formats.labels(place.path for place in located)
    out = []
    for place in located:
        blob = resolved(Blob(place.path))[0]
        file = InputFile(
            names[place.path], place.path, blob, _guess(blob, "text" if kind == "label" else "user", column)
        )
        _require_questions(file, kind, column)
        out.append(file)
    return out


def _guess(blob: Blob, role: str, column: str | None) -> Guess:
    """How a file is read. A first line that names a question is the header of a table, even of one column; of any other
    text each line is a question."""
    guess = look(blob, Wish())
    if guess.container not in ("txt", "csv", "tsv"):
        return guess
    lines = replace(guess, container="txt", unit="line", table=None)
    first = next((str(row["text"]) for _, row in formats.raw_rows(blob, lines)), "")
    names = [name.strip().strip('"') for name in re.split(r"[,\t;|]", first[:HEADER])]
    header = column if column in names else find_column(names, QUESTIONS)
    if header and (guess.table is None or header not in guess.columns):
        guess = look(blob, Wish(columns={role: header}))
    # Lines with a comma each are a table to a reader of tables; among prompts in a .txt file they are not.
    prose = blob.path.suffix.lower() == ".txt" and not header
    return guess if guess.table is not None and not prose else look(blob, Wish(unit="line"))


def _require_questions(file: InputFile, kind: Kind, column: str | None) -> None:
    problem, n = "", 0
    for n, row in enumerate(rows_of(file, kind, column), 1):
        if row.record is not None or n >= CHECKED:
            return
        problem = problem or row.problem
    problem = problem if n else t("there is a header alone, and no row below it")
    columns = listed(printable(name) for name in file.guess.columns) or t("none")
    raise DataError("TL-DATA-QUESTIONS", where=printable(str(file.path)), columns=columns, problem=problem or t("none"))


def digest(files: list[InputFile]) -> str:
    """12 hex digits of all bytes of the files, in order."""
    return hashlib.sha256("".join(sha256_of(file.path) for file in files).encode()).hexdigest()[:12]


def rows_of(file: InputFile, kind: Kind, column: str | None = None) -> Iterator[InputRow]:
    """Every row of a file, in order. kind: chat, label, or preference for dialogues whose last answer is judged."""
    for line, raw in formats.raw_rows(file.blob, file.guess):
        yield _row(raw, file, line, kind, column)


def _row(raw: Any, file: InputFile, line: int, kind: Kind, column: str | None) -> InputRow:
    raw = as_row(raw)
    if isinstance(raw, str | int | float) and not isinstance(raw, bool):
        raw = {"text": str(raw)}
    columns = raw if isinstance(raw, dict) else {}
    try:
        if isinstance(raw, Flaw):
            raise BadRow(raw.reason, raw.detail)
        record, reference = question_of(columns, kind, column, file.label, line)
    except BadRow as bad:
        reason = words().get(bad.reason, bad.reason)
        detail = printable(bad.detail)[:200]
        return InputRow(file.label, line, columns, problem=f"{reason}: {detail}" if detail else reason)
    return InputRow(file.label, line, columns, record, reference)


def question_of(
    row: Mapping[str, Any], kind: Kind, column: str | None = None, file: str = "", line: int = 0
) -> tuple[Record, str | None]:
    """What a row asks, as a record that ends with the question, and the answer or label that stands in it, if any.

    Of a preference the record is whole: its answers are what is judged. Raises BadRow.

    >>> record, reference = question_of({"question": "1+1?", "answer": "2"}, "chat")
    >>> [m.content for m in record.messages], reference
    (['1+1?'], '2')
    >>> question_of({"review": "fine"}, "label")[1] is None
    True
    """
    if not row or not any(v.strip() if isinstance(v, str) else v not in (None, [], {}) for v in row.values()):
        raise BadRow("empty row")
    roles = _roles(tuple(row), kind, column) or _only_text(row, kind)
    if not roles:
        raise BadRow("other shape", ", ".join(map(str, row)))
    if kind == "label":
        return _text(row, roles, file, line)
    if "rejected" in roles:
        record = convert(row, "preference", roles, file, line)
        return (record, None) if kind == "preference" else (record.with_messages(record.prompt), _last(record))
    answer = roles.get("assistant") or roles.get("chosen") or ""
    if "messages" not in roles and (not answer or row.get(answer) in (None, "")):
        row, roles = {**row, ABSENT: ""}, {**roles, "assistant": ABSENT}
    record = convert(row, "chat", roles, file, line)
    if kind == "preference":
        if not _last(record):
            raise BadRow("no answer")
        return record, None
    prompt = record.prompt
    if not any(m.role == "user" and m.content.strip() for m in prompt):
        raise BadRow("no text")
    return record.with_messages(prompt), _last(record)


def _text(row: Mapping[str, Any], roles: Mapping[str, str], file: str, line: int) -> tuple[Record, str | None]:
    label = row.get(roles["label"]) if "label" in roles else None
    known = label not in (None, "")
    given = row if known else {**row, ABSENT: "?"}
    record = convert(given, "label", {**roles, **({} if known else {"label": ABSENT})}, file, line)
    return record, record.label if known else None


def _last(record: Record) -> str | None:
    """The text of the last answer; None where the record ends without one."""
    answers = [m.content for m in record.messages[len(record.prompt) :]]
    return "\n".join(answers) if any(answer.strip() for answer in answers) else None


@lru_cache(maxsize=4096)
def _roles(keys: tuple[str, ...], kind: Kind, column: str | None) -> Mapping[str, str]:
    """Role -> column of a row with these columns; {} where they do not say it."""
    optional = {role: name for role, names in OPTIONAL.items() if (name := find_column(keys, names))}
    if column is not None:
        if column not in keys:
            return {}
        label = {"label": name} if (name := find_column(keys, LABEL)) and name != column else {}
        if kind == "label":
            return {"text": column, **label}
        answers = [
            name for fields in PAIRS.values() if (name := find_column(keys, fields["assistant"])) and name != column
        ]
        beside = {role: name for role, name in optional.items() if role in ("system", "history") and name != column}
        return {"user": column, **beside, **({"assistant": answers[0]} if answers else {})}
    if kind == "label":
        return _text_roles(keys)
    shape = layout(keys, "preference") if kind == "preference" else layout(keys, "chat")
    if shape.kind is None and kind == "preference":
        shape = layout(keys, "chat")
    if shape.kind is not None and {"messages", "user", "prompt", "chosen"} & set(shape.roles):
        return shape.roles
    if user := find_column(keys, QUESTIONS):
        return {
            "user": user,
            **{r: c for r, c in optional.items() if c != user and r in ("system", "history", "input")},
        }
    return {}


def _text_roles(keys: tuple[str, ...]) -> Mapping[str, str]:
    label = {"label": name} if (name := find_column(keys, LABEL)) else {}
    for names in TEXT_PAIRS:
        first, second = (find_column(keys, (name,)) for name in names)
        if first and second:
            return {"text": first, "text_pair": second, **label}
    text = find_column(keys, (*TEXT, *QUESTIONS))
    return {"text": text, **label} if text and text != label.get("label") else {}


def _only_text(row: Mapping[str, Any], kind: Kind) -> Mapping[str, str]:
    """Of a row with a single column, that one."""
    if len(row) == 1 and isinstance(next(iter(row.values())), str):
        return {"text" if kind == "label" else "user": next(iter(row))}
    return {}
