"""How a server stops: answers under way go on to their end, new requests are refused with 503."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from tuneloop.base.errors import ServeError
from tuneloop.serving.http.errors import error_body, headers_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

STILL_OPEN = frozenset({"/healthz", "/health", "/metrics"})
"""Paths that are answered to the end: the server lives, and what it does is of interest."""


class Drain:
    """Counts the requests under way; once it has begun, lets no other in."""

    def __init__(self) -> None:
        self.begun = False
        self._under_way = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def under_way(self) -> int:
        return self._under_way

    def begin(self) -> None:
        self.begun = True

    async def done(self, seconds: float) -> bool:
        """Wait until nothing is under way; False where that took longer than `seconds`."""
        try:
            await asyncio.wait_for(self._quiet.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def enter(self) -> None:
        self._under_way += 1
        self._quiet.clear()

    def leave(self) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._quiet.set()


class DrainGate:
    """The middleware before which requests turn back once the drain has begun."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app, self._drain = app, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in STILL_OPEN:
            await self._app(scope, receive, send)
            return
        if self._drain.begun:
            error = ServeError("TL-SERVE-CLOSING", status=503)
            scope.setdefault("state", {})["code"] = error.code
            headers = {**headers_of(error), "Connection": "close"}
            await JSONResponse(error_body(error), 503, headers)(scope, receive, send)
            return
        self._drain.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._drain.leave()
