"""The sha256 of files, remembered: a file of the same size, times and inode is not read again.

The time of the last change of the inode counts too, since tools that copy may set the other one back. A file that was
changed less than two seconds before it was looked at may change once more within the clock's grain; it is read again
the next time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tuneloop.base.files import sha256_of, write_atomic

GRAIN = 2_000_000_000
"""Nanoseconds."""


def stamp(path: Path) -> list[int]:
    """Size, times and inode of a file: while they stay the same, so does the file, but for the clock's grain."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


class DigestCache:
    """What is known of files, kept in one JSON file that may be deleted at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._new: dict[str, list[int | str]] = {}
        self._known: dict[str, list[int | str]] = {}
        with suppress(OSError, ValueError, RecursionError):
            content = json.loads(path.read_text(encoding="utf-8"))
            pairs = content.items() if isinstance(content, dict) else ()
            self._known = {name: known for name, known in pairs if isinstance(known, list) and len(known) == 5}

    def digests(self, paths: Iterable[Path]) -> dict[Path, str]:
        """The sha256 of each file; raises OSError where one cannot be read."""
        out: dict[Path, str] = {}
        for path in paths:
            now_is = stamp(path)
            name = os.path.realpath(path)
            known = self._known.get(name)
            if known and known[:4] == now_is:
                out[path] = str(known[4])
                continue
            now = time.time_ns()
            out[path] = sha256_of(path)
            if now - max(now_is[1:3]) > GRAIN:
                self._new[name] = [*now_is, out[path]]
        return out

    def keep(self) -> None:
        """Write down what was learnt since the last time."""
        if not self._new:
            return
        self._known |= self._new
        self._new = {}
        with suppress(OSError):  # no memory of it is no fault
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps(self._known))
