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
    found = _named(path, may_be_classes)
    if found:
        return found
    above, side = os.path.split(path)
    if side in ("train", "validation", "test") and above:
        found = [place for place in _named(above, may_be_classes) if place.side == side]
    if not found:
        raise DataError("TL-DATA-MISSING", where=printable(path), near=nearby(path))
    return found


def own(file: DataFile) -> list[str]:
    """What of a folder or glob on this machine is not read, since tuneloop wrote it: at most one sentence."""
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
    found = sorted(p for p in glob.glob(str(pattern), recursive=True) if os.path.isfile(p))
    wrote = ours.written(map(Path, found), _fixed(pattern))
    return [Place(Path(p)) for p in found if Path(p) not in wrote] + _left_out(_fixed(pattern), wrote)


def _fixed(pattern: Path) -> Path:
    """The folder that a glob begins in.

    >>> _fixed(Path("a/b/*/c.json")).as_posix()
    'a/b'
    """
    parts = pattern.parts
    return Path(*parts[: next(n for n, part in enumerate(parts) if glob.has_magic(part))])


def _left_out(folder: Path, wrote: set[Path]) -> list[Place]:
    """One place for all that tuneloop wrote there."""
    if not wrote:
        return []
    kept = sorted({path.relative_to(folder).parts[0] for path in wrote})
    why = t("{n} files that tuneloop wrote: {names}", n=len(wrote), names=printable(listed(kept[:6])))
    return [Place(folder / kept[0], named=False, left_out=why, ours=True)]


@lru_cache(maxsize=8)
def _fetched(path: str) -> tuple[Place, ...]:
    """A hub is asked once a process: a data set that changed meanwhile would be read as two."""
    return tuple(Place(file, side, named=False) for file, side in remote.fetch(path))


@lru_cache(maxsize=1)
def _stdin() -> Path:
    """What comes through the pipe, in a file that can be read more than once; it goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="tuneloop-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with (folder / "stdin").open("wb") as out:
        shutil.copyfileobj(sys.stdin.buffer, out)
    return folder / "stdin"


def _folder(folder: Path, may_be_classes: bool) -> list[Place]:
    kept = folders.saved(folder)
    if kept:
        return [Place(path, side) for path, side in kept]
    names = folders.listing(folder)
    wrote = ours.written([folder / name for name in names], folder)
    names = [name for name in names if folder / name not in wrote]
    return [
        Place(folder / leaf.name, leaf.side, leaf.label, named=False, left_out=leaf.left_out)
        for leaf in arranged(names, lambda name: Blob(folder / name), may_be_classes)
    ] + _left_out(folder, wrote)


def arranged(names: list[str], blob: Callable[[str], Blob], may_be_classes: bool) -> list[Leaf]:
    """The files of a folder or zip: texts in folders of classes, if that is what their content is too."""
    found = folders.classes(names) if may_be_classes else []
    first = {leaf.label: leaf.name for leaf in reversed(found) if leaf.label}
    return found if found and all(_is_prose(blob(name)) for name in first.values()) else folders.leaves(names)


def _is_prose(blob: Blob) -> bool:
    try:
        return look(blob).container == "txt"
    except DataError:
        return False
