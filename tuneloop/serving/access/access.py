"""The first step of a request: who sends it, and may this key ask this route."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Collection
from typing import TYPE_CHECKING

from tuneloop.base.errors import ServeError
from tuneloop.serving.access.foreign_pages import foreign
from tuneloop.serving.access.key_ring import KeyRing
from tuneloop.serving.access.keys import ApiKey
from tuneloop.serving.access.scopes import ALL, allows, scope_of
from tuneloop.serving.admission import NOBODY, Admission, Caller, caller_of

if TYPE_CHECKING:
    from starlette.requests import Request

FILE_CALLER = Caller("file", "(key file)", frozenset({ALL}), "(key file)")
"""Who has the key of the key file. No key of the store can be called so."""


class Access(Admission):
    """Wants "Authorization: Bearer KEY": a key of the ring, or the one key of a key file, which has all scopes.

    Where there is neither, everybody on this machine is let in, and nobody who reaches it over a network, nor a page of
    another origin than `origins` in a browser on this machine. Raises
    TL-SERVE-KEY-EMPTY for an empty key, which would be none.
    """

    of_keys = True

    def __init__(self, key: str | None = None, ring: KeyRing | None = None, origins: Collection[str] = ()) -> None:
        if key is not None and not key.strip():
            raise ServeError("TL-SERVE-KEY-EMPTY", where="api_key")
        self._digest = None if key is None else _digest(key.strip())
        self._ring, self._origins = ring, origins

    @property
    def locked(self) -> bool:
        """Whether a key is wanted."""
        return self._digest is not None or (self._ring is not None and self._ring.locked)

    async def enter(self, request: Request) -> None:
        request.state.caller = await self._caller(request)

    async def readmit(self, request: Request) -> None:
        """Raises TL-SERVE-KEY where the key is gone, and what `_caller_with` raises: a batch runs for hours."""
        caller = caller_of(request)
        if caller.id == FILE_CALLER.id:
            if self._digest is None:
                raise ServeError("TL-SERVE-KEY", status=401)
        elif caller.id and self._ring is not None:
            known = await self._ring.by_id(caller.id)
            if known is None:
                raise ServeError("TL-SERVE-KEY", status=401)
            request.state.caller = _caller_with(known, request.scope["route"].path)

    async def _caller(self, request: Request) -> Caller:
        if not self.locked and self._ring is not None:
            await self._ring.refresh()
        if not self.locked:
            if is_remote(request.scope.get("server")):
                raise ServeError("TL-SERVE-OPEN", status=401, host=request.scope["server"][0])
            if got := foreign(request.headers, request.scope.get("server"), self._origins):
                raise ServeError("TL-SERVE-ORIGIN", status=403, got=got[:200])
            return NOBODY
        scheme, _, word = request.headers.get("authorization", "").partition(" ")
        # Headers are bytes, which the framework shows as Latin-1: back to bytes they may be any letters of UTF-8.
        key = word.strip().encode("latin-1", "replace").decode("utf-8", "surrogateescape")
        if scheme.lower() != "bearer" or not key:
            raise ServeError("TL-SERVE-KEY", status=401)
        # Digests have one length, so that the time of the comparison tells nothing of the key's.
        if self._digest is not None and hmac.compare_digest(_digest(key), self._digest):
            return FILE_CALLER
        known = await self._ring.find(key) if self._ring is not None else None
        if known is None:
            raise ServeError("TL-SERVE-KEY", status=401)
        return _caller_with(known, request.scope["route"].path)


def _caller_with(key: ApiKey, path: str) -> Caller:
    """Raises TL-SERVE-KEY-ENDED, TL-SERVE-SCOPE."""
    if key.state != "live":
        raise ServeError("TL-SERVE-KEY-ENDED", status=401, id=key.id)
    if not allows(key.scopes, path):
        raise ServeError("TL-SERVE-SCOPE", status=403, id=key.id, scope=scope_of(path))
    return Caller(key.id, key.name, key.scopes, key.name, key.limits)


def is_remote(server: tuple[str, int | None] | None) -> bool:
    """Whether a request came in at an address of this machine that others can reach. What is no IP address is a
    socket of this machine's file system.

    >>> [is_remote((host, 80)) for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.7", "0.0.0.0", "/run/x")]
    [False, False, False, True, True, False]
    """
    try:
        address = ipaddress.ip_address(server[0].partition("%")[0]) if server else None
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address is not None and not (mapped or address).is_loopback


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
