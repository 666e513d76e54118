"""What the system refuses, told with a code, a place and a way on; space on the disk, asked for before it is used.

`refused` is the one place that knows what an operating system's error means for a person. Stages name the folder that
they write (`writing`); the command line asks it about all that is left.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tuneloop.base.environment import environment
from tuneloop.base.errors import MachineError, known_words
from tuneloop.base.files import KEEP_FREE, format_bytes, nearest_folder, printable
from tuneloop.base.language import t

_FULL = {errno.ENOSPC, errno.EDQUOT}
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_RUST = re.compile(r"\(os error (\d+)\)")
"""How safetensors and tokenizers pass a number of the system's on, in exceptions of their own."""
_SHORT = re.compile(r"^\d+ requested and \d+ written$")
"""How numpy says that a disk is full."""


def require_space(path: Path, need_bytes: int) -> None:
    """Raise TL-MACHINE-DISK unless `need_bytes` more bytes fit where `path` is or will be.

    64 MB beyond the need are kept free. It knows nothing of quotas that the system does not report.
    """
    folder = nearest_folder(path)
    free = shutil.disk_usage(folder).free
    if free < need_bytes + KEEP_FREE:
        raise _full(folder, format_bytes(need_bytes + KEEP_FREE))


@contextmanager
def writing(folder: Path, *, needed: str = "", then: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Work that writes below `folder`: what the system refuses meanwhile is told as what it is.

    `needed` says for how much or for what there must be room, `then` (asked when it is needed) how to go on once the
    cause is mended. Raises TL-MACHINE-DISK, TL-MACHINE-FOLDER, TL-MACHINE-NAME; any other error passes.
    """
    try:
        yield
    except Exception as error:
        refusal = refused(error, folder, needed=needed)
        if refusal is None:
            raise
        refusal.facts["then"] = refusal.facts.get("then") or then()
        if refusal is error:
            raise
        raise refusal from error


def refused(error: BaseException, folder: Path | None = None, *, needed: str = "") -> MachineError | None:
    """The coded error for what the system would not do, None where an error says nothing of the kind.

    The place is the file that the error names, or the folder that would not take it; else, on a full disk, the one that
    is full among those in use; else `folder`.
    """
    if isinstance(error, MachineError):
        return error if "then" in error.facts else None
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return MachineError("TL-MACHINE-NAME", where=_shown(_unwritable(error, folder)), then="")
    number = _number(error)
    if number is None:
        return None
    name = getattr(error, "filename", None)
    place = Path(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) and name else None
    if number in _FULL:
        return _full(nearest_folder(place) if place else _fullest(folder), needed)
    if place and number in _CLOSED:
        place = nearest_folder(place)
    where = place or folder
    return MachineError("TL-MACHINE-FOLDER", where=_shown(where) if where else "", error=known_words(number), then="")


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk, or the user's share of it, is full."""
    if isinstance(error, MachineError):
        return error.code == "TL-MACHINE-DISK"
    return _number(error) in _FULL


def _number(error: BaseException) -> int | None:
    """The system's number for what went wrong with a file; None for faults of other kinds and of the network."""
    if isinstance(error, OSError) and _SHORT.match(str(error)):
        return errno.ENOSPC
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        return error.errno if known_words(error.errno) else None
    match = _RUST.search(str(error))
    return int(match[1]) if match and known_words(int(match[1])) else None


def _full(place: Path, needed: str) -> MachineError:
    free = "?"
    with suppress(OSError):
        free = format_bytes(shutil.disk_usage(nearest_folder(place)).free)
    return MachineError(
        "TL-MACHINE-DISK", where=_shown(place), needed=needed or t("more than is free"), free=free, then=""
    )


def _fullest(folder: Path | None) -> Path:
    """Of the folders that are written while tuneloop works, the one whose disk has least room; `folder` before all."""
    places = [*([folder] if folder else []), Path(), environment().home, Path(tempfile.gettempdir())]
    rooms = []
    for place in places:
        with suppress(OSError):
            rooms.append((shutil.disk_usage(nearest_folder(place)).free, place))
    least = min(free for free, _ in rooms)
    return next(place for free, place in rooms if free <= least + (1 << 20))


def _unwritable(error: UnicodeEncodeError, folder: Path | None) -> object:
    """The folder whose name cannot be written as UTF-8: one in use, else what the text says around that character."""
    for place in (folder, Path.cwd(), environment().home):
        if place is not None and _is_odd(str(place.absolute())):
            return place.absolute()
    around = re.search(r"[^\s\"']*[\ud800-\udfff][^\"'\n]*", str(error.object))
    return around[0][:300] if around else ""


def _is_odd(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def _shown(text: object) -> str:
    """A whole path that can be printed, whatever bytes are in it."""
    return printable(text.absolute() if isinstance(text, Path) else text)


def require_writable(folder: Path) -> None:
    """Raise TL-MACHINE-DISK or TL-MACHINE-FOLDER unless a few kB can be written below `folder` now."""
    with writing(folder):
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(8192))
        except OSError as error:  # it names the file of the trial
            raise OSError(error.errno, error.strerror, str(folder)) from error


def require_readable(folder: Path) -> None:
    """Raise TL-MACHINE-FOLDER for a folder that is there and may not be looked into: a search there finds nothing."""
    if folder.is_dir():
        with writing(folder), os.scandir(folder):
            pass


def require_name(path: Path) -> None:
    """Raise TL-MACHINE-NAME where the whole path is not UTF-8: safetensors, tokenizers and reports cannot write it."""
    if _is_odd(absolute := str(path.absolute())):
        raise MachineError("TL-MACHINE-NAME", where=_shown(absolute), then="")


def output_is_full() -> bool:
    """Whether what is printed goes to a disk without room; then no more is tried, else Python complains at its end."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
