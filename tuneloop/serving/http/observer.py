"""What is noted of each request for the log and for the metrics: ids, counts and times, never a text."""

from __future__ import annotations

import logging
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuneloop.base.errors import TuneloopError
from tuneloop.serving.admission import NOBODY
from tuneloop.serving.engine import AnswerStream, Piece, WrappedStream
from tuneloop.serving.http.logs import REQUEST

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tuneloop.serving.http.metrics import ServerMetrics

log = logging.getLogger("tuneloop.serving.requests")
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
HEADER = b"x-request-id"
QUIET = frozenset({"healthz", "health", "ready", "metrics"})
"""Routes that are asked every few seconds: they are counted, and logged where they fail."""


@dataclass(slots=True)
class Answered:
    """What becomes known of a request while it is answered."""

    began: float = field(default_factory=time.monotonic)
    model: str = ""
    """Of the engine's names; empty where it took no query."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    first: float | None = None
    """Seconds from the request to its first piece."""
    finish: str = ""
    code: str = ""
    """Of an error after the answer had begun."""


class WatchedStream(WrappedStream):
    """An AnswerStream that tells a server's metrics and its log of itself."""

    def __init__(self, stream: AnswerStream, metrics: ServerMetrics, model: str, answered: Answered) -> None:
        super().__init__(stream)
        self._metrics, self._answered = metrics, answered
        answered.model = model
        self._last, self._ended = answered.began, False

    async def __anext__(self) -> Piece:
        about = self._answered
        try:
            piece = await anext(self._stream)
        except TuneloopError as error:
            about.code = error.code
            self._metrics.refused(error.code)
            raise
        now = time.monotonic()
        if about.first is None:
            about.first = now - about.began
            self._metrics.first_token(about.model, about.first)
        else:
            self._metrics.between_tokens(about.model, now - self._last)
        self._last = now
        about.answer_tokens += piece.tokens
        if piece.finish is not None:
            about.finish = piece.finish
            self._metrics.finished(about.model, piece.finish)
        return piece

    async def aclose(self) -> None:
        if not self._ended:
            self._ended = True
            about = self._answered
            about.prompt_tokens, about.cached_tokens = self.prompt_tokens, self.cached_tokens
            self._metrics.tokens(about.model, about.prompt_tokens, about.cached_tokens, about.answer_tokens)
        await self._stream.aclose()


class Observer:
    """The outermost middleware: gives each request an id, counts it, and logs it when it has ended."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, logged: bool) -> None:
        self._app, self._metrics, self._logged = app, metrics, logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, answered, status, gone = request_id(scope["headers"]), Answered(), 500, False
        state = scope.setdefault("state", {})
        state["answered"], state["request_id"] = answered, request
        REQUEST.set(request)

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (HEADER, request.encode("ascii"))]
            await send(message)

        async def heard() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "http.disconnect"
            return message

        try:
            await self._app(scope, heard, observed)
        finally:
            route = getattr(scope.get("route"), "name", "") or "other"
            seconds = time.monotonic() - answered.began
            self._metrics.request(route, status, seconds)
            if self._logged and (route not in QUIET or status >= 400):
                line = {"request": request, "key": state.get("caller", NOBODY).id, "method": _method(scope["method"])}
                line |= {"route": route, "status": status, "ms": round(1000 * seconds, 2)}
                log.info("request", extra={"fields": line | _of_answer(answered, state.get("code", ""), gone)})


def _of_answer(answered: Answered, code: str, gone: bool) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if answered.model:
        out = {
            "model": answered.model,
            "prompt_tokens": answered.prompt_tokens,
            "cached_tokens": answered.cached_tokens,
            "answer_tokens": answered.answer_tokens,
        }
    if answered.first is not None:
        out["first_token_ms"] = round(1000 * answered.first, 2)
    if answered.finish:
        out["finish"] = answered.finish
    elif answered.model and gone:
        out["gone"] = True
    if code := answered.code or code:
        out["code"] = code
    return out


def request_id(headers: list[tuple[bytes, bytes]]) -> str:
    """The id that the client or a proxy before us has given in X-Request-Id, where it is one word; else a new one.

    >>> request_id([(b"x-request-id", b"abc-1")])
    'abc-1'
    >>> len(request_id([(b"x-request-id", b"two words")]))
    32
    """
    given = next((text for name, text in headers if name == HEADER), b"")
    return given.decode("ascii") if _ID.fullmatch(given) else secrets.token_hex(16)


def _method(method: str) -> str:
    """A method as it may be logged: a client may send any word for one."""
    known = {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"}
    return method if method in known else "other"
