"""What the path of a recipe stands for: the files on this machine that it names, each with its side and its class."""

from __future__ import annotations

import atexit
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tuneloop.base.errors import DataError, nearby
from tuneloop.base.files import printable
from tuneloop.base.language import listed, t
from tuneloop.data.reading import folders, ours, remote, slices
from tuneloop.data.reading.containers import Blob
from tuneloop.data.reading.folders import FolderSide, Leaf
from tuneloop.data.reading.sniff import look
from tuneloop.recipe.schema import DataFile


@dataclass(frozen=True, slots=True)
class Place:
    """A local file. What lies in a folder may be no data; a file that was named must be.

    `inside` is the sheet of a workbook or the member of a zip that the recipe names behind "!/"; by default all.
    """

    path: Path
    side: FolderSide = "auto"
    label: str = ""
    named: bool = True
    left_out: str = ""
    inside: str = ""
    ours: bool = False
    """Whether it stands for what tuneloop wrote."""


def find(file: DataFile) -> list[Place]:
    """The files that `file.path` names: stdin, a data set of a hub, a folder, a glob, or itself.

    `train[:1500]` below a folder or a hub's data set takes the files of that side.
    Raises TL-DATA-MISSING and what `folders` and `remote` raise.
    """
    path, _ = slices.parted(file.path, file.rows)
    may_be_classes = file.task in (None, "label") and not file.columns
    locations = _named(path, may_be_classes)
    if locations:
        return locations
    above, side = os.path.split(path)
    if side in ("train", "validation", "test") and above:
        locations = [place for place in _named(above, may_be_classes) if place.side == side]
    if not locations:
        raise DataError("TL-DATA-MISSING", where=printable(path), near=nearby(path))
    return locations


def own(file: DataFile) -> list[str]:
    """A message on the files of a folder or glob that are skipped, since tuneloop wrote them; [] where none are."""
    if file.path == "-" or remote.is_remote(file.path):
        return []
    return [t("Not read: {what}", what=place.left_out) for place in find(file) if place.ours]


def _named(path: str, may_be_classes: bool) -> list[Place]:
    """The files of a path without a slice; none where there is no such thing."""
    if path == "-":
        return [Place(_stdin())]
    if remote.is_remote(path):
        above, _, side = path.rpartition("/")
        if side in ("train", "validation", "test") and "/" in above:
            return [place for place in _fetched(above) if place.side == side]
        return list(_fetched(path))
    pattern = Path(os.path.expanduser(path))
    if pattern.is_dir():
        return _folder(pattern, may_be_classes)
    if os.path.lexists(pattern):
        return [Place(pattern)]
    container, _, inside = str(pattern).partition("!" + os.sep)
    if inside and os.path.isfile(container):
        return [Place(Path(container), inside=inside.replace(os.sep, "/"))]
    if not glob.has_magic(str(pattern)):
        return []
    matches = sorted(p for p in glob.glob(str(pattern), recursive=True) if os.path.isfile(p))
    wrote = ours.written(map(Path, matches), _fixed(pattern))
    return [Place(Path(p)) for p in matches if Path(p) not in wrote] + _left_out(_fixed(pattern), wrote)


def _fixed(pattern: Path) -> Path:
    """The parent folder of a glob pattern's fixed part.

    >>> _fixed(Path("a/b/*/c.json")).as_posix()
    'a/b'
    """
    parts = pattern.parts
    return Path(*parts[: next(n for n, part in enumerate(parts) if glob.has_magic(part))])


def _left_out(folder: Path, wrote: set[Path]) -> list[Place]:
    """One skipped place that stands for all files that tuneloop wrote there."""
    if not wrote:
        return []
    names = sorted({path.relative_to(folder).parts[0] for path in wrote})
    why = t("{n} files that tuneloop wrote: {names}", n=len(wrote), names=printable(listed(names[:6])))
    return [Place(folder / names[0], named=False, left_out=why, ours=True)]


@lru_cache(maxsize=8)
def _fetched(path: str) -> tuple[Place, ...]:
    """The files of a hub's data set, cached for the process: one that changed meanwhile would be read as two."""
    return tuple(Place(file, side, named=False) for file, side in remote.fetch(path))


@lru_cache(maxsize=1)
def _stdin() -> Path:
    """Standard input, spooled to a temporary file that is deleted at exit, so that it can be read more than once."""
    folder = Path(tempfile.mkdtemp(prefix="tuneloop-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with (folder / "stdin").open("wb") as out:
        shutil.copyfileobj(sys.stdin.buffer, out)
    return folder / "stdin"


def _folder(folder: Path, may_be_classes: bool) -> list[Place]:
    saved = folders.saved(folder)
    if saved:
        return [Place(path, side) for path, side in saved]
    names = folders.listing(folder)
    wrote = ours.written([folder / name for name in names], folder)
    names = [name for name in names if folder / name not in wrote]
    return [
        Place(folder / leaf.name, leaf.side, leaf.label, named=False, left_out=leaf.left_out)
        for leaf in arranged(names, lambda name: Blob(folder / name), may_be_classes)
    ] + _left_out(folder, wrote)


def arranged(names: list[str], blob: Callable[[str], Blob], may_be_classes: bool) -> list[Leaf]:
    """The files of a folder or zip, labelled by sub-folder where these are classes and the files are plain text."""
    leaves = folders.classes(names) if may_be_classes else []
    first = {leaf.label: leaf.name for leaf in reversed(leaves) if leaf.label}
    return leaves if leaves and all(_is_prose(blob(name)) for name in first.values()) else folders.leaves(names)


def _is_prose(blob: Blob) -> bool:
    try:
        return look(blob).container == "txt"
    except DataError:
        return False
