"""The way out of a request: headers that the steps of admission have set, and what they want done at its end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("tuneloop.serving")


class Leaving:
    """The middleware of `admission.answer_headers` and `admission.at_end`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = state.get("headers", {}).items()
                message["headers"] = [*message["headers"], *((k.encode("ascii"), v.encode("ascii")) for k, v in own)]
            await send(message)

        try:
            await self._app(scope, receive, with_headers)
        finally:
            for work in state.get("at_end", ()):
                try:
                    work()
                except Exception:
                    log.exception("the end of a request failed")
