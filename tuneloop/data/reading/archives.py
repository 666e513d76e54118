"""Zip archives, read where they lie: their names and sizes are checked before the first byte is unpacked."""

from __future__ import annotations

import re
import stat
import zipfile
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from tuneloop.base.errors import DataError
from tuneloop.base.files import printable
from tuneloop.base.language import t

TOTAL = 64 << 30
"""Largest unpacked size of one archive, in bytes."""
RATIO = 500
"""Largest compression ratio (unpacked / packed bytes); text has 3 to 30, deflate can reach 1032."""
FREE = 64 << 20
"""Unpacked size, in bytes, below which the compression ratio is not checked."""
MEMBERS = 200_000
_IGNORED = ("__MACOSX", "Thumbs.db", "desktop.ini")


def is_zip(head: bytes) -> bool:
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def is_ignored(name: str) -> bool:
    """Whether a name in a folder or archive is the system's own and no data.

    >>> [is_ignored(n) for n in ("a.json", ".DS_Store", "__MACOSX/a.json", "b/.git/config")]
    [False, True, True, True]
    """
    return any(part.startswith(".") or part in _IGNORED for part in PurePosixPath(name).parts)


def require_sane(where: str, unpacked: int, packed: int) -> None:
    """Raise TL-DATA-BOMB for a zip bomb: above TOTAL unpacked bytes, or above RATIO."""
    if unpacked > TOTAL or (unpacked > FREE and unpacked > RATIO * max(packed, 1)):
        raise DataError("TL-DATA-BOMB", where=where, unpacked=unpacked >> 20, packed=round(packed / (1 << 20), 2))


def is_workbook(file: Path) -> bool:
    """Whether a zip is an Excel file; raises TL-DATA-BINARY for another office file or a pickled model."""
    with _opened(file) as archive:
        names = archive.namelist()
    if "[Content_Types].xml" in names:
        if any(name.startswith("xl/workbook") for name in names):
            return True
        raise DataError("TL-DATA-BINARY", where=printable(file), kind="docx / pptx")
    if names[:1] == ["mimetype"]:
        raise DataError("TL-DATA-BINARY", where=printable(file), kind="OpenDocument / EPUB")
    if any(PurePosixPath(name).name == "data.pkl" for name in names):
        raise DataError("TL-DATA-BINARY", where=printable(file), kind="pickle")
    return False


def members(path: Path) -> list[str]:
    """The names of the files in a zip, sorted.

    Raises TL-DATA-MEMBER for a name that leads out of the archive, TL-DATA-BOMB for sizes that cannot be,
    TL-DATA-ARCHIVE for a password or a broken archive, TL-DATA-EMPTY for one without files.
    """
    with _opened(path) as archive:
        infos = archive.infolist()
    out: list[str] = []
    for info in infos:
        problem = _problem(info)
        if problem:
            raise DataError(
                "TL-DATA-MEMBER", where=printable(path), name=printable(info.orig_filename), problem=problem
            )
        if info.flag_bits & 1:
            raise DataError("TL-DATA-ARCHIVE", where=printable(path), error=t("it has a password"))
        if not info.is_dir() and not is_ignored(info.filename):
            out.append(info.filename)
    if len(set(out)) != len(out):
        twice = next(name for name in out if out.count(name) > 1)
        raise DataError("TL-DATA-MEMBER", where=printable(path), name=printable(twice), problem=t("it is there twice"))
    total, size = sum(info.file_size for info in infos), path.stat().st_size
    require_sane(printable(path), TOTAL + 1 if len(out) > MEMBERS else total, size)
    if not out:
        raise DataError("TL-DATA-EMPTY", where=printable(path))
    return sorted(out)


def _problem(info: zipfile.ZipInfo) -> str:
    name = info.orig_filename
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return t("an absolute path")
    if "\\" in name or "\0" in name:
        return t("a character that file names in a zip do not have")
    if ".." in PurePosixPath(name).parts:
        return t("a path that leads out of the archive")
    if stat.S_ISLNK(info.external_attr >> 16):
        return t("a link")
    return ""


def member(path: Path, name: str) -> BinaryIO:
    """The unpacked bytes of one member; raises zipfile's errors and OSError."""
    status = path.stat()
    return cast(BinaryIO, _cached_archive(path, status.st_mtime_ns, status.st_size).open(name))


def title(name: str, path: Path) -> str:
    """A member's decoded file name: Chinese Windows writes GBK, which zipfile reads as code page 437."""
    if (
        name.isascii()
        or _cached_archive(path, path.stat().st_mtime_ns, path.stat().st_size).getinfo(name).flag_bits & 0x800
    ):
        return printable(name)
    try:
        return name.encode("cp437").decode("gb18030")
    except UnicodeError:
        return printable(name)


@lru_cache(maxsize=1)
def _cached_archive(path: Path, _time: int, _size: int) -> zipfile.ZipFile:
    """The open zip file, cached: its central directory is slow to read where it has many members."""
    return zipfile.ZipFile(path)


def _opened(file: Any) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, UnicodeError) as error:
        raise DataError("TL-DATA-ARCHIVE", where=printable(file), error=str(error)) from error
