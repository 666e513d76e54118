"""Raw files -> records. Every row becomes a Record, or an entry in the ledger that says why not.

What the columns mean stands in `shapes.py`; what a file is, in `sniff.py`; which files there are, in `places.py`.
Nothing is cleaned here.
"""

from __future__ import annotations

import difflib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.base.errors import DataError, os_words
from tuneloop.base.files import printable
from tuneloop.base.language import listed, t
from tuneloop.base.records import LedgerEntry, Record
from tuneloop.data.ledger import words
from tuneloop.data.reading import (
    archives,
    arrays,
    cells,
    chatlog,
    columnar,
    containers,
    encodings,
    grouping,
    paragraphs,
    places,
    shapes,
    sheets,
    slices,
    tables,
)
from tuneloop.data.reading.containers import Blob, resolved
from tuneloop.data.reading.folders import FolderSide, side_of
from tuneloop.data.reading.keys import BadRow
from tuneloop.data.reading.places import Place
from tuneloop.data.reading.rows import Flaw, NumberedRow, convert
from tuneloop.data.reading.sniff import Guess, Wish, document, look
from tuneloop.recipe.schema import DataFile


@dataclass(frozen=True, slots=True)
class Source:
    """A file, archive member or sheet to read, and its detected format. `label` is its name in records.

    `path` is a file on this machine: of a zip's member the zip. `side` is what its name tells, in a folder or archive.
    """

    path: Path
    label: str
    guess: Guess
    side: FolderSide = "auto"
    blob: Blob | None = None
    given: str = ""
    """The label that its folder's name gives all its rows."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The sources of a recipe's entry, and the files that are left out: (name, reason)."""

    sources: list[Source]
    left_out: list[tuple[str, str]]


def paths(file: DataFile) -> list[Path]:
    """The files on this machine that `file.path` names, sorted. A hub's data set is fetched, stdin written down.

    Raises TL-DATA-MISSING and what `places.find` raises.
    """
    return [place.path for place in places.find(file) if not place.left_out]


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
    """The sources of a recipe's entry; raises a DataError where one of them cannot be read."""
    return survey(file, names).sources


def survey(file: DataFile, names: dict[Path, str] | None = None, *, verdicts: bool = False) -> Survey:
    """The sources, and what was left out of a folder or archive and why.

    `verdicts`: what is trained needs answers known to be good or bad, so a label of 0 and 1 says which.
    """
    locations = places.find(file)
    names = names or labels(place.path for place in locations)
    wish = Wish(file.columns, file.task, file.encoding, file.header, file.speakers, verdicts, file.unit)
    out = Survey([], [])
    first: DataError | None = None
    for place in locations:
        label = names.get(place.path) or printable(place.path.name)
        if place.left_out:
            out.left_out.append((label, place.left_out))
            continue
        try:
            _open(place, label, wish, out)
        except DataError as error:
            if place.named or error.code not in _NO_DATA:
                raise
            first = first or error
            out.left_out.append((label, error.what))
    _without_notes(out)
    if not out.sources:
        raise first or DataError("TL-DATA-FOLDER-EMPTY", where=printable(file.path))
    return out


_NO_DATA = ("TL-DATA-BINARY", "TL-DATA-EMPTY", "TL-DATA-SHAPE", "TL-DATA-MANY-LABELS", "TL-DATA-LISTS",
            "TL-DATA-ARRAYS")  # fmt: skip
"""Error codes for which a file in a folder or archive is left out; any other error is raised."""


def _open(place: Place, label: str, wish: Wish, out: Survey) -> None:
    """Add the sources in one file: itself, the members of a zip, the sheets of a workbook."""
    if place.label:
        blob = Blob(place.path)
        out.sources.append(Source(place.path, label, document(blob, wish), place.side, blob, place.label))
        return
    blob, head = resolved(Blob(place.path))
    if not archives.is_zip(head):
        if place.inside:
            raise DataError(
                "TL-DATA-INSIDE", where=printable(place.path), name=printable(place.inside), known=t("none")
            )
        out.sources.append(_source(place, label, blob, wish))
        return
    if containers.is_workbook(blob, head):
        names = sheets.names(blob)
        inside = [
            (f"{label}!/{name}", Blob(place.path, sheet=name), _either(side_of(name), place.side)) for name in names
        ]
        if len(inside) == 1 and not place.inside:
            inside = [(label, *inside[0][1:])]
    else:
        names = [archives.title(name, place.path) for name in archives.members(place.path)]
        inside = _members(place, label, wish, out)
    if place.inside and place.inside not in names:
        near = listed(printable(name) for name in names[:20]) or t("none")
        raise DataError("TL-DATA-INSIDE", where=printable(place.path), name=printable(place.inside), known=near)
    inside = [one for one in inside if place.inside in ("", one[0].removeprefix(f"{label}!/"))]
    if inside:
        _inside(place, inside, wish, out)


def _members(place: Place, label: str, wish: Wish, out: Survey) -> list[tuple[str, Blob, FolderSide]]:
    """The members of a zip still to be detected; those in folders of classes, and what is left out, go to `out`."""
    inside = []
    names, may_be_classes = archives.members(place.path), wish.task in (None, "label") and not wish.columns
    for leaf in places.arranged(names, lambda name: Blob(place.path, name), may_be_classes and not place.inside):
        name = f"{label}!/{archives.title(leaf.name, place.path)}"
        member, side = Blob(place.path, leaf.name), _either(leaf.side, place.side)
        if leaf.left_out:
            out.left_out.append((name, leaf.left_out))
        elif leaf.label:
            out.sources.append(Source(place.path, name, document(member, wish), side, member, leaf.label))
        else:
            inside.append((name, member, side))
    return inside


def _either(own: FolderSide, above: FolderSide) -> FolderSide:
    return own if own != "auto" else above


def _inside(place: Place, inside: Sequence[tuple[str, Blob, FolderSide]], wish: Wish, out: Survey) -> None:
    """Add the sources among members or sheets; those without data are left out, unless all are."""
    before = len(out.sources)
    refused: list[DataError] = []
    for name, blob, side in inside:
        try:
            out.sources.append(_source(Place(place.path, side), name, blob, wish))
        except DataError as error:
            if error.code not in _NO_DATA:
                raise
            refused.append(error)
            out.left_out.append((name, error.what))
    if len(out.sources) == before:
        raise refused[0] if refused else DataError("TL-DATA-EMPTY", where=printable(place.path))


def _source(place: Place, label: str, blob: Blob, wish: Wish) -> Source:
    guess = look(blob, wish)
    if wish.columns:
        _check_columns(blob.where, guess, wish)
    elif guess.kind is None:
        columns = listed(guess.columns) or t("none")
        if wish.task and look(blob, Wish(encoding=wish.encoding)).kind:
            raise DataError("TL-DATA-KIND", where=blob.where, task=wish.task, columns=columns)
        if guess.shape == shapes.MANY_LABELS:
            raise DataError("TL-DATA-MANY-LABELS", where=blob.where, why=guess.why, columns=columns)
        raise DataError("TL-DATA-SHAPE", where=blob.where, columns=columns, roles=listed(shapes.ROLE_NAMES))
    return Source(place.path, label, guess, place.side, blob)


def _without_notes(out: Survey) -> None:
    """Leave out plain text beside structured files of a folder or archive: it is a README or a licence."""
    if all(s.guess.container == "txt" for s in out.sources):
        return
    several = [s for s in out.sources if s.guess.container == "txt"]
    for source in several if len(out.sources) > 1 else []:
        out.sources.remove(source)
        out.left_out.append((source.label, t("plain text beside files with rows")))


def _check_columns(where: str, guess: Guess, wish: Wish) -> None:
    """Raise TL-DATA-COLUMNS for a role or a column that does not exist, and for roles that make no record."""
    columns, problems = wish.columns, []
    inside = {*shapes.INSIDE, "reasoning"} if "messages" in columns else set()
    for role, column in columns.items():
        there = guess.inside if role in inside else guess.columns
        for name, known in ((role, shapes.ROLE_NAMES), (column, there)):
            if name not in known:
                near = difflib.get_close_matches(name, known, 1, 0.6)
                hint = t(" (did you mean {near}?)", near=near[0]) if near else ""
                problems.append(f"{printable(name)}{hint}")
    twice = Counter(columns.values())
    problems += [
        t(
            "{column} cannot be {roles} at once",
            column=printable(column),
            roles=listed(role for role, one in columns.items() if one == column),
        )
        for column, times in twice.items()
        if times > 1
    ]
    beside = sorted({"user", "assistant", "input", "history", "conversation", "order"} & set(columns))
    if "messages" in columns and beside:
        problems.append(t("messages and {roles} exclude each other", roles=listed(beside)))
    if not problems and guess.kind is None:
        task = t(" for task {task}", task=wish.task) if wish.task else ""
        problems = [t("these roles make no record{task}", task=task)]
    if problems:
        faults, roles, seen = listed(problems), listed(shapes.ROLE_NAMES), listed(guess.columns) or t("none")
        raise DataError("TL-DATA-COLUMNS", where=where, problems=faults, columns=seen, roles=roles)


def read(file: DataFile, inputs: Sequence[Source] | None = None, seed: int = 42) -> Iterator[Record | LedgerEntry]:
    """Every row of the file as a Record or a dropped LedgerEntry, in order.

    `line` is the line where the row starts in JSON lines, tables and text, and the number of the row elsewhere, from 1.
    `file.rows` takes a slice of the rows of all its files together, `file.sample` then so many of them by `seed`.
    Raises DataError where a file as a whole is broken, empty or has no good row.
    """
    inputs = sources(file) if inputs is None else inputs
    _, rows = slices.parted(file.path, file.rows)
    wanted = None if rows is None else slices.row_slice(rows)

    def items() -> Iterator[tuple[Source, Record | LedgerEntry]]:
        raw = _all_rows(inputs)
        for source, line, row in raw if wanted is None else slices.taken(raw, wanted):
            yield source, _record(source, line, row, file)

    taken = items()
    if file.sample:
        taken = slices.drawn(items, file.sample, seed, _stratum)
    good: Counter[str] = Counter()
    bad: dict[str, list[LedgerEntry]] = {}
    count: Counter[str] = Counter()
    for source, outcome in taken:
        where = source.label
        if isinstance(outcome, Record):
            good[where] += 1
            bad.pop(where, None)
        elif not good[where]:
            count[where] += 1
            bad.setdefault(where, []).append(outcome) if count[where] <= 1000 else None
        yield outcome
    if not good and not bad:
        raise DataError("TL-DATA-ROWS-NONE" if rows else "TL-DATA-EMPTY", where=printable(file.path), rows=rows)
    for where, entries in bad.items():
        reason = Counter(e.reason for e in entries).most_common(1)[0][0]
        first = next(e for e in entries if e.reason == reason)
        path = next(s.blob.where if s.blob else printable(s.path) for s in inputs if s.label == where)
        raise DataError(
            "TL-DATA-ALL-BAD",
            where=f"{path}:{first.line}",
            n=count[where],
            reason=words()[reason],
            detail=f" ({first.detail})" if first.detail else "",
        )


def _stratum(outcome: tuple[Source, Record | LedgerEntry]) -> str:
    return outcome[1].label if isinstance(outcome[1], Record) else ""


def _record(source: Source, line: int, row: Any, file: DataFile) -> Record | LedgerEntry:
    roles = _roles(source, file)
    if roles and source.guess.table is not None and isinstance(row, dict):
        broken = next((name for name in roles.values() if row.get(name) in cells.ERRORS), None)
        if broken is not None:
            detail = printable(f"{broken}: {row[broken]}")[:200]
            return LedgerEntry("dropped", "read", "error cell", source.label, line, detail=detail)
    try:
        if source.guess.container != "chat log":
            row = grouping.renamed(row, file.columns, file.speakers)
        return convert(row, source.guess.kind or "chat", roles, source.label, line)
    except BadRow as bad:
        return LedgerEntry("dropped", "read", bad.reason, source.label, line, detail=printable(bad.detail)[:200])


def _roles(source: Source, file: DataFile) -> dict[str, str] | None:
    """The column roles of all rows of a file; None where they are inferred row by row."""
    if source.guess.container == "chat log":
        return dict(source.guess.roles)
    if grouping.by_turns(source.guess.roles):
        return None
    if file.columns:
        return file.columns
    fixed = source.given or source.guess.table is not None or source.guess.container == "txt"
    return dict(source.guess.roles) if fixed else None


def _all_rows(inputs: Sequence[Source]) -> Iterator[tuple[Source, int, Any]]:
    for source in inputs:
        blob = source.blob or resolved(Blob(source.path))[0]
        for line, row in raw_rows(blob, source.guess):
            if source.given and isinstance(row, dict):
                row = {**row, "label": source.given}
            yield source, line, row


def raw_rows(blob: Blob, guess: Guess) -> Iterator[NumberedRow]:
    """The rows of a file as they lie, each with its line or row number; turns of one dialogue are one row.

    Raises DataError where the file cannot be read to its end.
    """
    try:
        yield from _dialogues(blob, guess)
    except UnicodeError as error:
        raise DataError("TL-DATA-ENCODING", where=blob.where, error=str(error)) from error
    except OSError as error:
        raise DataError("TL-DATA-UNREADABLE", where=blob.where, error=os_words(error)) from error


def _dialogues(blob: Blob, guess: Guess) -> Iterator[NumberedRow]:
    """The rows of one source; rows of one turn each are grouped into dialogues."""
    if grouping.by_turns(guess.roles):
        return grouping.dialogues(lambda: _rows(blob, guess), guess.roles)
    return _rows(blob, guess)


def _rows(blob: Blob, guess: Guess) -> Iterator[NumberedRow]:
    """The raw rows of one source, each with its line or row number."""
    blob = Blob(blob.path, blob.member, guess.compression, blob.sheet)
    if guess.container == "json":
        return enumerate(arrays.elements(blob, guess.encoding), 1)
    if guess.container == "jsonl":
        return _json_lines(blob, guess.encoding)
    if guess.container == "object":
        document = arrays.load(blob, guess.encoding)
        return enumerate(document[guess.key] if guess.key else [document], 1)
    if guess.container == "chat log":
        form, *ours = json.loads(guess.key)
        return chatlog.rows(blob, guess.encoding, form, ours)
    if guess.container == "txt":
        return paragraphs.rows(blob, guess.encoding, guess.unit)
    if guess.table is None:
        return columnar.rows(blob, guess.container)
    if guess.container == "xlsx":
        return sheets.rows(blob, guess.table)
    return tables.rows(encodings.lines(blob, guess.encoding, ""), guess.table)


def _json_lines(blob: Blob, encoding: str) -> Iterator[NumberedRow]:
    loads = json.loads
    for number, line in enumerate(encodings.lines(blob, encoding), 1):
        text = line.strip("\ufeff \t\r\n")  # a mark in the middle: files were glued together
        if not text:
            continue
        try:
            yield number, loads(text)
        except (ValueError, RecursionError) as error:
            yield number, Flaw("broken JSON", str(error))
