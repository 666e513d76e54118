"""Locks on files that several processes write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout


def open_to_all(file: Path, wait: float = -1) -> BaseFileLock:
    """A lock that another user of a shared folder can open, to see that it is held. Windows has no such modes."""
    return FileLock(file, timeout=wait, mode=0o666) if hasattr(os, "fchmod") else FileLock(file, timeout=wait)


@contextmanager
def lock(file: Path, wait: float = -1) -> Iterator[None]:
    """Hold a lock that lies beside what it locks and is gone afterwards; it goes with the process, however that ends.

    Raises filelock's Timeout after `wait` seconds, if that is not negative.
    """
    with open_to_all(file, wait):
        try:
            yield
        finally:
            # While it is held: whoever waits for it sees that it is gone and makes it anew. Windows keeps open files.
            with suppress(OSError):
                file.unlink()


def is_held(file: Path) -> bool:
    """Whether a process holds this lock; one that ended holds none, however it ended.

    On POSIX a shared lock is tried, which several may at once; it makes no file. On Windows, which has none, the lock
    itself is held for a moment.
    """
    try:
        import fcntl
    except ImportError:
        return file.exists() and _refuses(file)
    try:
        number = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(number)
    return False


def _refuses(file: Path) -> bool:
    try:
        with open_to_all(file, 0):
            return False
    except Timeout:
        return True
