"""A request that the server sends itself: through the whole application, but without a socket and without a key."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tuneloop.serving.admission import CALLER, Caller

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

log = logging.getLogger("tuneloop.serving")


async def inner_request(app: ASGIApp, path: str, body: bytes, caller: Caller) -> tuple[int, bytes, Mapping[str, str]]:
    """POST a body of JSON: status, body and headers of the answer."""
    sent, status, parts, headers = False, 500, bytearray(), {}
    hung_up = asyncio.Event()

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            headers.update({name.decode().lower(): text.decode("latin-1") for name, text in message["headers"]})
        else:
            parts.extend(message.get("body", b""))

    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": None,
        "server": ("batch", None), "state": {"behind": True}, CALLER: caller,
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
    }  # fmt: skip
    try:
        await app(scope, receive, send)
    except Exception as error:
        if not parts:
            raise
        # A fault goes on through the application after its answer, a coded 500, was sent.
        last = traceback.extract_tb(error.__traceback__)[-1]  # not the error's words: texts may stand in them
        log.error("a line of a batch met a fault: %s at %s:%s", type(error).__name__, last.filename, last.lineno)
    finally:
        hung_up.set()
    return status, bytes(parts), headers
