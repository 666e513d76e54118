"""The keys that a server knows, read from the store again while it serves."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.registry.store import Store, open_store
from tuneloop.serving.access.keys import ApiKey, all_keys, id_of

log = logging.getLogger("tuneloop.serving")
FRESH = 1.0
"""Seconds after which the keys are read again: so long a revoked one may still be taken."""
SOON = 0.1
"""Seconds after which they are read again for a key that is not among them: it may be a new one."""
STALE = 60.0
"""Seconds for which the keys last read are gone by when the store does not answer; then nobody is let in."""


class KeyRing:
    """The keys of a store: a file of SQLite, which need not be there yet, or an address of PostgreSQL.

    A ring that has had a key stays locked, whatever becomes of its store. Raises TL-RUN-STORE where the first reading
    fails.
    """

    def __init__(self, place: Path | str) -> None:
        self._place = place
        self._store: Store | None = None
        self._keys: dict[str, ApiKey] = {}
        self._read_at = 0.0
        self._reading: asyncio.Future[TuneloopError | None] | None = None
        self.locked = False
        """Whether there has ever been a key."""
        self._use(self._load())

    async def find(self, key: str) -> ApiKey | None:
        """The key as the store has it, one that has ended as well. Raises TL-SERVE-KEYS while the store is away."""
        identity = id_of(key)
        await self.refresh(FRESH)
        if identity and identity not in self._keys:
            await self.refresh(SOON)
        known = self._keys.get(identity)
        return known if known is not None and known.fits(key) else None

    async def by_id(self, identity: str) -> ApiKey | None:
        """The key of an id. Raises TL-SERVE-KEYS while the store is away."""
        await self.refresh(FRESH)
        return self._keys.get(identity)

    async def refresh(self, seconds: float = FRESH) -> None:
        """Read the keys again if that was longer ago: once for all requests that wait for it, which go on together."""
        if time.monotonic() - self._read_at < seconds:
            return
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(self._read())
        error = await asyncio.shield(self._reading)
        if error is not None and time.monotonic() - self._read_at > STALE:
            raise ServeError("TL-SERVE-KEYS", status=503, seconds=5) from error

    async def _read(self) -> TuneloopError | None:
        """Why the keys could not be read."""
        try:
            self._use(await asyncio.to_thread(self._load))
        except TuneloopError as error:
            log.warning("the keys could not be read: %s", error)
            return error
        return None

    def _use(self, keys: list[ApiKey]) -> None:
        self._keys = {key.id: key for key in keys}
        self.locked = self.locked or bool(keys)
        self._read_at = time.monotonic()

    def _load(self) -> list[ApiKey]:
        if self._store is None:
            if isinstance(self._place, Path) and not self._place.is_file():
                return []  # serving makes no store
            self._store = open_store(self._place)
        return all_keys(self._store)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
