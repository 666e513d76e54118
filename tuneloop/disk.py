"""Room on the disk, asked for before a long write and not discovered in the middle of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from tuneloop.errors import MachineError

_KEEP_FREE = 64 * 1024 * 1024
"""What a machine needs to stay usable: a write may not take the last of it."""


def require_room(path: Path, need_bytes: int) -> None:
    """Raise TL-MACHINE-DISK unless `need_bytes` more bytes fit where `path` is or will be.

    64 MB beyond the need are kept free. It knows nothing of quotas that the system does not report.
    """
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < need_bytes + _KEEP_FREE:
        needed = size_text(need_bytes + _KEEP_FREE)
        raise MachineError("TL-MACHINE-DISK", where=str(folder), needed=needed, free=size_text(free))


def size_text(count: int) -> str:
    """A number of bytes for people, in powers of 1000 as drives and downloads are sold.

    >>> size_text(538_090_408), size_text(1_072_419_256), size_text(512)
    ('538 MB', '1.07 GB', '512 B')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count / size < 999.5 else f"{count / size:.0f} {unit}"
    return f"{count} B"
