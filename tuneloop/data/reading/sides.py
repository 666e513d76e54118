"""Which side each file of a recipe is of, by the names of all of them: one rule for a name, a glob and a folder.

A file is of a side where its whole name, or that of a folder, is one of the usual names (`folders.side_of`), and only
where another file is of another side: a lone test.jsonl, or an article of that name, is data like any other. What the
recipe says (`data[].split`) stands above it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tuneloop.data.reading.folders import side_of
from tuneloop.data.reading.formats import Source
from tuneloop.data.reading.remote import is_remote
from tuneloop.recipe.schema import DataFile

Group = tuple[DataFile, list[Source]]


def settled(entries: Sequence[Group]) -> list[Group]:
    """The sources of each entry, each with its side. A file's folders count below the one that all files lie in."""
    local = {s.path for file, group in entries if _is_local(file) for s in group}
    above = _common(local)
    groups = [(file, [_sided(file, s, above) for s in group]) for file, group in entries]
    sides = {s.side if file.split == "auto" else file.split for file, group in groups for s in group} - {"auto"}
    if len(sides) > 1:
        return groups
    return [(file, [replace(s, side="auto") for s in group]) for file, group in groups]


def _sided(file: DataFile, source: Source, above: Path | None) -> Source:
    if source.side != "auto" or not _is_local(file):
        return source
    name = _absolute(source.path).relative_to(above).as_posix() if above else source.path.name
    return replace(source, side=side_of(name))


def _is_local(file: DataFile) -> bool:
    return file.path != "-" and not is_remote(file.path)


def _common(paths: set[Path]) -> Path | None:
    try:
        return Path(os.path.commonpath([_absolute(path).parent for path in paths]))
    except ValueError:  # none at all, or on several drives
        return None


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))
