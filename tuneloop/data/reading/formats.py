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
from tuneloop.data.reading.rows import Flaw, convert
from tuneloop.data.reading.sniff import Guess, Wish, document, look
from tuneloop.recipe.schema import DataFile


@dataclass(frozen=True, slots=True)
class Source:
    """One thing that will be read, and what it is. `label` is what records call it.

    `path` is a file on this machine: of a zip's member the zip. `side` is what its name tells, in a folder or archive.
    """

    path: Path
    label: str
    guess: Guess
    side: FolderSide = "auto"
    blob: Blob | None = None
    given: str = ""
    """The class that its folder's name gives it."""


@dataclass(frozen=True, slots=True)
class Found:
    """What will be read, and what lies beside it and will not be: (name, reason)."""

    sources: list[Source]
    left_out: list[tuple[str, str]]


Row = tuple[int, Any]


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
    """Everything that will be read, each with what it is; raises a DataError where one of them cannot be."""
    return survey(file, names).sources


def survey(file: DataFile, names: dict[Path, str] | None = None, *, verdicts: bool = False) -> Found:
    """The sources, and what was left out of a folder or archive and why.

    `verdicts`: what is trained needs answers known to be good or bad, so a label of 0 and 1 says which.
    """
    found = places.find(file)
    names = names or labels(place.path for place in found)
    wish = Wish(file.columns, file.task, file.encoding, file.header, file.speakers, verdicts, file.unit)
    out = Found([], [])
    first: DataError | None = None
    for place in found:
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
"""Codes of a file that lies among data and is none; a broken one is an error wherever it lies."""


def _open(place: Place, label: str, wish: Wish, out: Found) -> None:
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
        inside = [(f"{label}!/{name}", Blob(place.path, sheet=name), _either(side_of(name), place.side))
                  for name in names]  # fmt: skip
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


def _members(place: Place, label: str, wish: Wish, out: Found) -> list[tuple[str, Blob, FolderSide]]:
    """The members of a zip that are looked at; those in folders of classes, and what is left out, go to `out`."""
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


def _either(told: FolderSide, above: FolderSide) -> FolderSide:
    return told if told != "auto" else above


def _inside(place: Place, inside: Sequence[tuple[str, Blob, FolderSide]], wish: Wish, out: Found) -> None:
    """Members and sheets: what is no data is left out, unless there is nothing else."""
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


def _without_notes(found: Found) -> None:
    """Plain text beside rows of structure, in a folder or archive, is a README or a licence and no data."""
    if all(s.guess.container == "txt" for s in found.sources):
        return
    several = [s for s in found.sources if s.guess.container == "txt"]
    for source in several if len(found.sources) > 1 else []:
        found.sources.remove(source)
        found.left_out.append((source.label, t("plain text beside files with rows")))


"""Roles of which no two can be one column."""


def _check_columns(where: str, guess: Guess, wish: Wish) -> None:
    """Raise TL-DATA-COLUMNS for a role or a column that does not exist, and for roles that make no record."""
    columns, problems = wish.columns, []
    inside = {*shapes.INSIDE, "reasoning"} if "messages" in columns else set()
    for role, column in columns.items():
        there = guess.inside if role in inside else guess.columns
        for value, known in ((role, shapes.ROLE_NAMES), (column, there)):
            if value not in known:
                near = difflib.get_close_matches(value, known, 1, 0.6)
                hint = t(" (did you mean {near}?)", near=near[0]) if near else ""
                problems.append(f"{printable(value)}{hint}")
    twice = Counter(columns.values())
    problems += [
        t("{column} cannot be {roles} at once", column=printable(column),
          roles=listed(role for role, one in columns.items() if one == column))
        for column, times in twice.items() if times > 1
    ]  # fmt: skip
    beside = sorted({"user", "assistant", "input", "history", "conversation", "order"} & set(columns))
    if "messages" in columns and beside:
        problems.append(t("messages and {roles} exclude each other", roles=listed(beside)))
    if not problems and guess.kind is None:
        task = t(" for task {task}", task=wish.task) if wish.task else ""
        problems = [t("these roles make no record{task}", task=task)]
    if problems:
        said, roles, seen = listed(problems), listed(shapes.ROLE_NAMES), listed(guess.columns) or t("none")
        raise DataError("TL-DATA-COLUMNS", where=where, problems=said, columns=seen, roles=roles)


def read(file: DataFile, found: Sequence[Source] | None = None, seed: int = 42) -> Iterator[Record | LedgerEntry]:
    """Every row of the file as a Record or a dropped LedgerEntry, in order.

    `line` is the line where the row starts in JSON lines, tables and text, and the number of the row elsewhere, from 1.
    `file.rows` takes a slice of the rows of all its files together, `file.sample` then so many of them by `seed`.
    Raises DataError where a file as a whole is broken, empty or has no good row.
    """
    found = sources(file) if found is None else found
    _, rows = slices.parted(file.path, file.rows)
    wanted = None if rows is None else slices.row_slice(rows)

    def items() -> Iterator[tuple[Source, Record | LedgerEntry]]:
        raw = _all_rows(found)
        for source, line, value in raw if wanted is None else slices.taken(raw, wanted):
            yield source, _record(source, line, value, file)

    taken = items()
    if file.sample:
        taken = slices.drawn(items, file.sample, seed, _stratum)
    good: Counter[str] = Counter()
    bad: dict[str, list[LedgerEntry]] = {}
    count: Counter[str] = Counter()
    for source, item in taken:
        where = source.label
        if isinstance(item, Record):
            good[where] += 1
            bad.pop(where, None)
        elif not good[where]:
            count[where] += 1
            bad.setdefault(where, []).append(item) if count[where] <= 1000 else None
        yield item
    if not good and not bad:
        raise DataError("TL-DATA-ROWS-NONE" if rows else "TL-DATA-EMPTY", where=printable(file.path), rows=rows)
    for where, entries in bad.items():
        reason = Counter(e.reason for e in entries).most_common(1)[0][0]
        first = next(e for e in entries if e.reason == reason)
        path = next(s.blob.where if s.blob else printable(s.path) for s in found if s.label == where)
        raise DataError("TL-DATA-ALL-BAD", where=f"{path}:{first.line}", n=count[where], reason=words()[reason],
                        detail=f" ({first.detail})" if first.detail else "")  # fmt: skip


def _stratum(item: tuple[Source, Record | LedgerEntry]) -> str:
    return item[1].label if isinstance(item[1], Record) else ""


def _record(source: Source, line: int, value: Any, file: DataFile) -> Record | LedgerEntry:
    roles = _roles(source, file)
    if roles and source.guess.table is not None and isinstance(value, dict):
        broken = next((name for name in roles.values() if value.get(name) in cells.ERRORS), None)
        if broken is not None:
            detail = printable(f"{broken}: {value[broken]}")[:200]
            return LedgerEntry("dropped", "read", "error cell", source.label, line, detail=detail)
    try:
        if source.guess.container != "chat log":
            value = grouping.renamed(value, file.columns, file.speakers)
        return convert(value, source.guess.kind or "chat", roles, source.label, line)
    except BadRow as bad:
        return LedgerEntry("dropped", "read", bad.reason, source.label, line, detail=printable(bad.detail)[:200])


def _roles(source: Source, file: DataFile) -> dict[str, str] | None:
    """The roles of all rows of a file; None where each row is looked at by itself."""
    if source.guess.container == "chat log":
        return dict(source.guess.roles)
    if grouping.by_turns(source.guess.roles):
        return None
    if file.columns:
        return file.columns
    fixed = source.given or source.guess.table is not None or source.guess.container == "txt"
    return dict(source.guess.roles) if fixed else None


def _all_rows(found: Sequence[Source]) -> Iterator[tuple[Source, int, Any]]:
    for source in found:
        blob = source.blob or resolved(Blob(source.path))[0]
        try:
            for line, value in _dialogues(blob, source.guess):
                if source.given and isinstance(value, dict):
                    value = {**value, "label": source.given}
                yield source, line, value
        except UnicodeError as error:
            raise DataError("TL-DATA-ENCODING", where=blob.where, error=str(error)) from error
        except OSError as error:
            raise DataError("TL-DATA-UNREADABLE", where=blob.where, error=os_words(error)) from error


def _dialogues(blob: Blob, guess: Guess) -> Iterator[Row]:
    """The rows, those of one turn each made into dialogues."""
    if grouping.by_turns(guess.roles):
        return grouping.dialogues(lambda: _rows(blob, guess), guess.roles)
    return _rows(blob, guess)


def _rows(blob: Blob, guess: Guess) -> Iterator[Row]:
    """The raw rows of one source with their places."""
    blob = Blob(blob.path, blob.member, guess.compression, blob.sheet)
    if guess.container == "json":
        return enumerate(arrays.elements(blob, guess.encoding), 1)
    if guess.container == "jsonl":
        return _json_lines(blob, guess.encoding)
    if guess.container == "object":
        value = arrays.load(blob, guess.encoding)
        return enumerate(value[guess.key] if guess.key else [value], 1)
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


def _json_lines(blob: Blob, encoding: str) -> Iterator[Row]:
    loads = json.loads
    for number, line in enumerate(encodings.lines(blob, encoding), 1):
        text = line.strip("\ufeff \t\r\n")  # a mark in the middle: files were glued together
        if not text:
            continue
        try:
            yield number, loads(text)
        except (ValueError, RecursionError) as error:
            yield number, Flaw("broken JSON", str(error))
