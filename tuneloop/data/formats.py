"""Raw files -> records. Every row becomes a Record, or an entry in the ledger that says why not.

What the columns mean stands in `shapes.py`; what the file is, in `sniff.py`. Nothing is cleaned here.
"""

from __future__ import annotations

import csv
import difflib
import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tuneloop.data import shapes
from tuneloop.data.ledger import words
from tuneloop.data.sniff import FIELD, Guess, load_json, look, opened, quoting, shown
from tuneloop.errors import DataError
from tuneloop.language import t
from tuneloop.records import LedgerEntry, Message, Record
from tuneloop.sections import DataFile


@dataclass(frozen=True, slots=True)
class Source:
    """One file that will be read, and what it is. `label` is what records call it."""

    path: Path
    label: str
    guess: Guess


@dataclass(frozen=True, slots=True)
class Flaw:
    """A row that could not even be taken out of its container."""

    reason: str
    detail: str


Row = tuple[int, Any]


def paths(file: DataFile) -> list[Path]:
    """The files that `file.path` names: itself, or what the glob finds, sorted. Raises TL-DATA-MISSING."""
    pattern = Path(os.path.expanduser(file.path))
    if not glob.has_magic(str(pattern)) or os.path.lexists(pattern):
        return [pattern]
    found = sorted(p for p in glob.glob(str(pattern), recursive=True) if os.path.isfile(p))
    if not found:
        raise DataError("TL-DATA-MISSING", where=shown(pattern))
    return [Path(p) for p in found]


def labels(all_paths: Iterable[Path]) -> dict[Path, str]:
    """The name of each file; where two are named alike, with as many folders as tell them apart.

    >>> sorted(labels([Path("a/x.json"), Path("b/x.json"), Path("y.json")]).values())
    ['a/x.json', 'b/x.json', 'y.json']
    """
    tails = {p: ["/".join(p.parts[-n:]) for n in range(1, len(p.parts) + 1)] for p in dict.fromkeys(all_paths)}
    count = Counter(tail for own in tails.values() for tail in own)
    named = {p: next((tail for tail in own if count[tail] == 1), own[-1]) for p, own in tails.items()}
    return {p: os.fsencode(name).decode("utf-8", "replace") for p, name in named.items()}


def sources(file: DataFile, names: dict[Path, str] | None = None) -> list[Source]:
    """The files, each with what it is; raises a DataError where one of them cannot be trained on."""
    found = paths(file)
    names = names or labels(found)
    out = []
    for path in found:
        guess = look(path, file.columns)
        _refuse(path, guess)
        if file.columns:
            _check_columns(path, guess, file.columns)
        out.append(Source(path, names[path], guess))
    return out


def read(file: DataFile, found: Sequence[Source] | None = None) -> Iterator[Record | LedgerEntry]:
    """Every row of the file as a Record or a dropped LedgerEntry, in order.

    `line` is the line where the row starts in JSON lines and tables, and the number of the row elsewhere, from 1.
    `file.rows` takes a slice of the rows of all its files together. Raises DataError where a file as a whole is
    broken, empty or has no good row.
    """
    found = sources(file) if found is None else found
    good: Counter[Path] = Counter()
    bad: dict[Path, list[LedgerEntry]] = {}
    for source, line, value in _sliced(_all_rows(found), file):
        item = _record(source.label, line, value, file.columns)
        if isinstance(item, Record):
            good[source.path] += 1
        elif not good[source.path]:
            bad.setdefault(source.path, []).append(item)
        yield item
    if not good and not bad:
        raise DataError("TL-DATA-ROWS-NONE" if file.rows else "TL-DATA-EMPTY", where=shown(file.path), rows=file.rows)
    for path, entries in bad.items():
        if not good[path]:
            reason = Counter(e.reason for e in entries).most_common(1)[0][0]
            first = next(e for e in entries if e.reason == reason)
            raise DataError("TL-DATA-ALL-BAD", where=f"{shown(path)}:{first.line}", n=len(entries),
                            reason=words()[reason], detail=f" ({first.detail})" if first.detail else "")  # fmt: skip


def _refuse(path: Path, guess: Guess) -> None:
    """Raise for what is recognised but not trained yet, and for what is not recognised."""
    columns = ", ".join(guess.columns) or t("none")
    tasks = {
        "preference": t("preference pairs or like / dislike labels"),
        "labelled": t("texts with labels (classification)"),
        "text": t("plain text (continued pre-training)"),
    }
    if guess.shape in tasks:
        raise DataError("TL-DATA-TASK", where=shown(path), task=tasks[guess.shape], columns=columns)
    if guess.shape == "unknown":
        raise DataError("TL-DATA-SHAPE", where=shown(path), columns=columns, roles=", ".join(shapes.ROLE_NAMES))


def _check_columns(path: Path, guess: Guess, columns: dict[str, str]) -> None:
    """Raise TL-DATA-COLUMNS for a role or a column that does not exist, and for a mapping without a dialogue."""
    problems = []
    for role, column in columns.items():
        for value, known in ((role, shapes.ROLE_NAMES), (column, guess.columns)):
            if value not in known:
                near = difflib.get_close_matches(value, known, 1, 0.6)
                hint = t(" (did you mean {near}?)", near=near[0]) if near else ""
                problems.append(f"{shown(value)}{hint}")
    seen = ", ".join(guess.columns) or t("none")
    beside = sorted({"user", "assistant", "input", "history", "reasoning"} & set(columns))
    if "messages" in columns and beside:
        problems.append(t("messages and {roles} exclude each other", roles=", ".join(beside)))
    if not problems and "messages" not in columns and not {"user", "assistant"} <= set(columns):
        problems = [t("neither messages nor both of user and assistant")]
    if problems:
        said, roles = ", ".join(problems), ", ".join(shapes.ROLE_NAMES)
        raise DataError("TL-DATA-COLUMNS", where=shown(path), problems=said, columns=seen, roles=roles)


def _record(label: str, line: int, value: Any, columns: dict[str, str]) -> Record | LedgerEntry:
    try:
        if isinstance(value, Flaw):
            raise shapes.BadRow(value.reason, value.detail)
        messages, tools = shapes.convert(value, columns)
        _check_sound(messages, tools)
        return Record(messages, label, line, tools)
    except shapes.BadRow as bad:
        return LedgerEntry("dropped", "read", bad.reason, label, line, detail=shown(bad.detail)[:200])


def _check_sound(messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...]) -> None:
    """Raise BadRow unless the dialogue can be written as JSON in UTF-8."""
    try:
        body = json.dumps([[m.as_chat() for m in messages], tools], ensure_ascii=False, allow_nan=False)
        body.encode("utf-8")
    except UnicodeEncodeError as error:
        near = error.object[max(0, error.start - 20) : error.end]
        raise shapes.BadRow("invalid Unicode", near) from error
    except ValueError as error:
        raise shapes.BadRow("NaN or infinity", str(error)) from error
    except (TypeError, RecursionError) as error:
        raise shapes.BadRow("not JSON data", str(error)) from error


def _sliced(rows: Iterator[tuple[Source, int, Any]], file: DataFile) -> Iterator[tuple[Source, int, Any]]:
    """The rows that `file.rows` takes; only a negative bound needs all of them in memory."""
    if file.rows is None:
        return rows
    wanted = row_slice(file.rows)
    if any(bound is not None and bound < 0 for bound in (wanted.start, wanted.stop)):
        return iter(list(rows)[wanted])
    return islice(rows, wanted.start, wanted.stop, wanted.step)


def row_slice(text: str) -> slice:
    """'[:1500]', '[100:200]' or '[::2]' as a slice; raises TL-DATA-ROWS for anything else.

    >>> row_slice("[100:200]")
    slice(100, 200, None)
    """
    match = re.fullmatch(r"\s*\[\s*(-?\d{1,18})?\s*:\s*(-?\d{1,18})?\s*(?::\s*(\d{1,18})?\s*)?\]\s*", text)
    start, stop, step = (int(b) if b else None for b in (match.groups() if match else ("", "", "0")))
    if match is None or step == 0:
        raise DataError("TL-DATA-ROWS", where="data.rows", got=shown(text))
    return slice(start, stop, step)


def _all_rows(found: Sequence[Source]) -> Iterator[tuple[Source, int, Any]]:
    for source in found:
        path, guess = source.path, source.guess
        readers = {"json": _json, "object": _json, "jsonl": _json_lines, "csv": _table, "tsv": _table,
                   "parquet": _parquet}  # fmt: skip
        try:
            for line, value in readers[guess.container](path, guess):
                yield source, line, value
        except UnicodeError as error:
            raise DataError("TL-DATA-ENCODING", where=shown(path), error=str(error)) from error
        except OSError as error:
            raise DataError("TL-DATA-UNREADABLE", where=shown(path), error=error.strerror or str(error)) from error


def _json(path: Path, guess: Guess) -> Iterator[Row]:
    value = load_json(path, guess.encoding)
    rows = value if isinstance(value, list) else value[guess.key] if guess.key else [value]
    yield from enumerate(rows, 1)


def _json_lines(path: Path, guess: Guess) -> Iterator[Row]:
    with opened(path, guess.encoding) as handle:
        for number, line in enumerate(handle, 1):
            text = line.strip("\ufeff \t\r\n")  # a mark in the middle: files were glued together
            if not text:
                continue
            try:
                yield number, json.loads(text)
            except (ValueError, RecursionError) as error:
                yield number, Flaw("broken JSON", str(error))


def _table(path: Path, guess: Guess) -> Iterator[Row]:
    assert guess.table is not None
    table = guess.table
    csv.field_size_limit(FIELD)
    with opened(path, guess.encoding, newline="") as handle:
        reader = csv.reader(handle, delimiter=table.delimiter, strict=table.quoted, quoting=quoting(table.quoted))
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
                continue  # a blank line
            if header_due:
                header_due = False
            elif not any(cell.strip() for cell in row):
                yield line, Flaw("empty row", "")
            elif len(row) != len(table.names):
                yield line, Flaw("ragged row", f"{len(row)} / {len(table.names)}")
            else:
                yield line, dict(zip(table.names, row, strict=True))


def _parquet(path: Path, guess: Guess) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, ValueError) as error:
        raise DataError("TL-DATA-PARQUET", where=shown(path), error=str(error)) from error
