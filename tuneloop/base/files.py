"""Files and folders: written whole or not at all, sha256, space on the disk, names that can be printed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

KEEP_FREE = 64 * 1024 * 1024
"""What a machine needs to stay usable: a write may not take the last of it."""


@contextmanager
def draft_of(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """The path of a file beside `path` to write; at the end of the block it takes the name `path`, over what was there.

    Where the block raises, nothing is left of it and `path` is as it was. With `sync` the bytes are on the disk first.
    The draft keeps the ending of `path`, since writers of images and tables go by it.
    """
    draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield draft
        if sync:
            flush(draft)
        os.replace(draft, path)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes, *, sync: bool = False) -> None:
    """Write a file, UTF-8 where it is text, whole or not at all. With `sync` it is on the disk when this returns."""
    with draft_of(path, sync=sync) as draft:
        draft.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    if sync:
        flush(path.parent)


@contextmanager
def folder_atomic(target: Path, *, sync: bool = False, alone: bool = True) -> Iterator[Path]:
    """An empty folder beside `target` to fill; at the end of the block it takes that name, in place of what was there.

    Where the block or the renaming fails, nothing is left of it and `target` is as it was; so it is again where an
    earlier process ended between the two renames. With `sync` all of it is on the disk first.
    `alone`: no other process makes the same folder, so what one that crashed has left is removed; otherwise each has a
    draft of its own name.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.draft" + ("" if alone else f"-{uuid.uuid4().hex[:8]}"))
    old = draft.with_name(f"{draft.name}-old")
    _put_back(old, target)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        if sync:
            flush_all(draft)
        if target.exists():
            os.replace(target, old)
        os.replace(draft, target)
        if sync:
            flush(target.parent)
    finally:
        _put_back(old, target)
        shutil.rmtree(draft, ignore_errors=True)


def _put_back(old: Path, target: Path) -> None:
    """What was moved out of the way takes its name again where nothing has taken it; else it is removed."""
    if old.exists() and not target.exists():
        os.replace(old, target)
    shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """See a file or folder onto the disk; folders cannot be opened on Windows, where renames are flushed anyway."""
    try:  # Windows flushes only what is open for writing
        handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # a file system that has nothing to flush
            raise
    finally:
        os.close(handle)


def flush_all(folder: Path) -> None:
    """See every file below a folder, and the folders, onto the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def nearest_folder(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    while not os.path.exists(path) and path != path.parent:  # pathlib would raise where it may not look
        path = path.parent
    return path


def printable(text: object) -> str:
    """A text that can be printed and written as UTF-8, whatever bytes were in a file name.

    >>> printable("a\\udcff.json")
    'a\\\\udcff.json'
    """
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def format_bytes(count: int) -> str:
    """A number of bytes for people, in powers of 1000 as drives and downloads are sold.

    >>> format_bytes(538_090_408), format_bytes(1_072_419_256), format_bytes(512)
    ('538 MB', '1.07 GB', '512 B')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count / size < 999.5 else f"{count / size:.0f} {unit}"
    return f"{count} B"


def short_names(paths: Sequence[str]) -> list[str]:
    """The name of each file, or its whole path where two of these share a name.

    >>> short_names(["x/a.csv", "y/a.csv", "y\\\\b.csv"])
    ['x/a.csv', 'y/a.csv', 'b.csv']
    """
    names = [path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] for path in paths]
    often = Counter(names)
    return [name if often[name] == 1 else path for path, name in zip(paths, names, strict=True)]
