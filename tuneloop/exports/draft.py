"""The folder that an export is made in: beside the one it becomes, locked while it is written, removed when left."""

from __future__ import annotations

import errno
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import Timeout

from tuneloop.runs.lock import lock

UNLOCKED_SECONDS = 24 * 3600
"""How long a draft without a lock (of an earlier version, or on a disk that has no locks) must have lain untouched."""
_NO_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS}


@contextmanager
def draft_folder(to: Path) -> Iterator[Path]:
    """A new empty folder `.NAME.<8 hex digits>.partial` beside `to`; nothing is left of it afterwards.

    It is locked, by a file of its name and `.lock` beside it, before it is there: another export to the same place
    removes only drafts that nobody holds. The system lets the lock go with the process, however that ends.
    """
    draft = to.with_name(f".{to.name}.{uuid.uuid4().hex[:8]}.partial")
    with ExitStack() as held:
        try:
            held.enter_context(lock(_lock_of(draft), 0))
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
        try:
            draft.mkdir()
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def remove_abandoned(to: Path) -> None:
    """Remove the drafts of earlier exports to `to` whose process is gone, on whichever machine it ran."""
    name = re.compile(re.escape(f".{to.name}.") + r"[0-9a-f]{8}\.partial(\.lock)?")
    there = [path for path in to.parent.iterdir() if name.fullmatch(path.name)] if to.parent.is_dir() else []
    for draft in {path.with_name(path.name.removesuffix(".lock")) for path in there}:
        with suppress(Timeout, OSError, NotImplementedError):  # it is being written, or another user's
            _remove_unless_held(draft)


def _remove_unless_held(draft: Path) -> None:
    if _lock_of(draft).is_file():
        with lock(_lock_of(draft), 0):
            shutil.rmtree(draft, ignore_errors=True)
    elif draft.is_dir() and not draft.is_symlink():
        latest = max(path.lstat().st_mtime for path in (draft, *draft.rglob("*")))
        if time.time() - latest > UNLOCKED_SECONDS:
            shutil.rmtree(draft, ignore_errors=True)


def _lock_of(draft: Path) -> Path:
    return draft.with_name(f"{draft.name}.lock")
