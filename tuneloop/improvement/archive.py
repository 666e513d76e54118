"""A workspace's records: the store they lie in, opened at its first use, and the hashes of the users they are about."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from tuneloop.base.environment import environment
from tuneloop.improvement.users import UserHashes, user_hashes
from tuneloop.registry.store import FILE, Store, open_store

P = ParamSpec("P")
T = TypeVar("T")
_THREADS = ThreadPoolExecutor(8, thread_name_prefix="tuneloop-store")


def store_place(workspace: Path) -> str | Path:
    """Where the store of a workspace is: what TUNELOOP_STORE names, else the file in its folder."""
    return environment().store or workspace / FILE


class Archive:
    """Store and hashes of one workspace; threads may share it."""

    def __init__(self, workspace: Path, place: str | Path | None = None) -> None:
        self.workspace, self.place = workspace, place or store_place(workspace)
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._users: UserHashes | None = None

    @property
    def exists(self) -> bool:
        """Whether there is a store to look into; a database's server is always one."""
        return not isinstance(self.place, Path) or self.place.is_file()

    @property
    def store(self) -> Store:
        """Raises what `open_store` raises."""
        with self._lock:
            if self._store is None:
                self._store = open_store(self.place)
            return self._store

    @property
    def users(self) -> UserHashes:
        """Raises what `user_hashes` raises."""
        with self._lock:
            if self._users is None:
                self._users = user_hashes(self.workspace)
            return self._users

    def close(self) -> None:
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._store = None


async def beside(work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """What a call of the store says, in one of its own threads: calls that wait for a database that is slow or locked
    leave those of the event loop to others, such as whoever reads keys and long requests."""
    call = partial(contextvars.copy_context().run, partial(work, *args, **options))
    return await asyncio.get_running_loop().run_in_executor(_THREADS, call)
