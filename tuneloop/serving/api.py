"""The server: OpenAI's chat API over an engine. It knows HTTP and the API's shapes, and nothing of models.

Every route asks for the key when there is one, but for those in `PUBLIC`: the check is a dependency of the whole
application, so a route that is added later is closed until somebody opens it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from tuneloop.base.errors import MachineError, ServeError, TuneloopError, os_words
from tuneloop.base.optional import need
from tuneloop.base.records import Reply
from tuneloop.serving.schemas import (
    DONE,
    STATUS,
    ChatRequest,
    ClassifyRequest,
    Writer,
    classified,
    error_body,
    event,
    model_entry,
    room,
)

if TYPE_CHECKING:
    from tuneloop.serving.torch_engine import Stream, TorchEngine

for _module in ("fastapi", "uvicorn"):
    need(_module, extra="serve")

import uvicorn  # noqa: E402
from fastapi import Depends, FastAPI, Request, Response  # noqa: E402
from fastapi.responses import JSONResponse, StreamingResponse  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402
from starlette.types import Receive, Scope, Send  # noqa: E402

Body = TypeVar("Body", bound=BaseModel)
MOST_BYTES = 8 << 20
"""Longest request body; a context of a million tokens fits."""
GRACE_SECONDS = 5
"""How long answers under way may go on after Ctrl-C."""
PUBLIC = frozenset({"healthz"})
"""Names of the routes that need no key."""


def create_app(engine: TorchEngine, *, model_name: str, api_key: str | None = None) -> FastAPI:
    """An application that answers as `model_name` and closes `engine` at its end.

    With `api_key` every route but /healthz wants "Authorization: Bearer <key>". Raises TL-SERVE-KEY-EMPTY for an empty
    key, which would be none.
    """
    if api_key is not None and not api_key.strip():
        raise ServeError("TL-SERVE-KEY-EMPTY", where="api_key")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    # No generated documentation: its page loads scripts from a CDN, and its routes would pass by the key.
    app = FastAPI(
        title="tuneloop", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan,
        dependencies=[Depends(_Guard(api_key))],
    )  # fmt: skip
    app.add_exception_handler(TuneloopError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_fault)
    app.state.engine, app.state.model_name = engine, model_name
    _add_routes(app, engine, model_name)
    return app


class _Guard:
    """The dependency that asks for the key."""

    def __init__(self, api_key: str | None) -> None:
        self._digest = None if api_key is None else _digest(api_key.strip().encode())

    async def __call__(self, request: Request) -> None:
        if self._digest is None or request.scope["route"].name in PUBLIC:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        # Digests have one length, so that the time of the comparison tells nothing of the key's.
        # Headers are bytes, which the framework shows as Latin-1: back to bytes they may be any letters of UTF-8.
        given = _digest(key.strip().encode("latin-1", "replace"))
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._digest):
            raise ServeError("TL-SERVE-KEY")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _add_routes(app: FastAPI, engine: TorchEngine, model_name: str) -> None:
    created = int(time.time())

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        if not engine.open:
            raise ServeError("TL-SERVE-CLOSING")
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_entry(model_name, created)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        _known(name, model_name)
        return model_entry(name, created)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        asked = await _parse(request, ChatRequest)
        _known(asked.model, model_name)
        chat = asked.chat()
        options: dict[str, Any] = {
            "max_new_tokens": room(asked, await engine.count(chat), engine.context),
            "temperature": asked.heat,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "seed": asked.seed,
            "stop": asked.stops,
        }
        items = engine.submit(chat, **options)
        writer = Writer(model_name)
        if asked.stream:
            with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
            return _EventStream(_events(writer, items, with_usage), items)
        reply = await _unless_gone(request, items)
        # Nobody reads the answer to a client that has gone; 499 is for the logs.
        return Response(status_code=499) if reply is None else JSONResponse(writer.whole(reply))

    @app.post("/v1/classify")
    async def classify(request: Request) -> Response:
        asked = await _parse(request, ClassifyRequest)
        _known(asked.model, model_name)
        if not engine.labels:
            raise ServeError("TL-SERVE-NO-LABELS", where="model", param="model", model=model_name)
        tokens = await engine.count(asked.chat())
        if tokens > engine.context:
            raise ServeError("TL-SERVE-CONTEXT", where="input", param="input", tokens=tokens, context=engine.context)
        reply = await _unless_gone(request, engine.submit(asked.chat(), max_new_tokens=1))
        return Response(status_code=499) if reply is None else JSONResponse(classified(model_name, reply))


def _known(asked: str, served: str) -> None:
    if asked != served:
        raise ServeError("TL-SERVE-MODEL", where="model", param="model", got=asked[:200], known=served)


async def _parse(request: Request, kind: type[Body]) -> Body:
    """The request's body. It is read here, not by the framework: after the key, and never more than `MOST_BYTES`."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise ServeError("TL-SERVE-BODY", most=MOST_BYTES)
    try:
        return kind.model_validate_json(bytes(body))
    except ValidationError as error:
        # Of a union's branches only the first is named: the others fail for the same reason.
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(p) for p in first["loc"]) or None
        raise ServeError("TL-SERVE-REQUEST", where=param or "body", param=param, error=first["msg"]) from error


async def _unless_gone(request: Request, items: Stream) -> Reply | None:
    """The whole reply, or None as soon as the client has hung up; then the answer ends at its next token."""

    async def last() -> Reply:
        async for item in items:
            if isinstance(item, Reply):
                return item
        raise ServeError("TL-SERVE-FAILED", error="no reply")

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, hung_up = asyncio.ensure_future(last()), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({answer, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else None
    finally:
        answer.cancel()
        hung_up.cancel()
        await items.aclose()


async def _events(writer: Writer, items: Stream, with_usage: bool) -> AsyncIterator[str]:
    """Server-sent events of an answer. A failure after the first byte has no status any more: it is an event itself."""
    extra: dict[str, Any] = {"usage": None} if with_usage else {}
    yield writer.chunk({"role": "assistant", "content": ""}, **extra)
    try:
        async for item in items:
            if isinstance(item, str):
                yield writer.chunk({"content": item}, **extra)
                continue
            yield writer.chunk({}, item.finish, **extra)
            if with_usage:
                yield writer.usage_chunk(item)
            yield DONE
    except TuneloopError as error:
        yield event(error_body(error))


class _EventStream(StreamingResponse):
    """A streamed answer that is cancelled when sending ends, however it ends: before the first byte, too."""

    def __init__(self, events: AsyncIterator[str], items: Stream) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        self._items = items

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._items.aclose()


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TuneloopError)
    status, _ = STATUS.get(error.code, (500, ""))
    headers = {}
    if status == 503:
        headers["Retry-After"] = str(error.facts.get("seconds", 1))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error), status, headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    codes = {404: "TL-SERVE-ROUTE", 405: "TL-SERVE-METHOD"}
    coded = ServeError(
        codes.get(error.status_code, "TL-SERVE-REQUEST"),
        method=request.method, path=request.url.path, error=error.detail, param=None,
    )  # fmt: skip
    return JSONResponse(error_body(coded), error.status_code, error.headers)


async def _on_fault(request: Request, error: Exception) -> Response:
    """A fault of ours: the client learns that there was one, the log (the framework's) where."""
    return JSONResponse(error_body(ServeError("TL-SERVE-FAILED", error=type(error).__name__)), 500)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Made before the model is loaded: a port in use must not cost minutes.

    Raises TL-MACHINE-PORT.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, OverflowError, UnicodeError) as error:
        raise MachineError("TL-MACHINE-PORT", where=f"{host}:{port}", error=os_words(error), port=port) from error
    try:
        # On POSIX this lets a restarted server have its port back; on Windows it would let two have it.
        if sys.platform == "win32":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Bound is not yet taken: only a listening socket refuses the second server.
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise MachineError("TL-MACHINE-PORT", where=f"{host}:{port}", error=os_words(error), port=port) from error
    return bound


class _Server(uvicorn.Server):
    """Closes the engine while connections drain: so each client gets an answer or a word, and none is cut off."""

    def __init__(self, config: uvicorn.Config, engine: TorchEngine) -> None:
        super().__init__(config)
        self._engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.ensure_future(asyncio.to_thread(self._engine.close, GRACE_SECONDS))
        await super().shutdown(sockets)
        if self.force_exit:
            await asyncio.to_thread(self._engine.close)
        await closing


def run(app: FastAPI, bound: socket.socket) -> None:
    """Serve until Ctrl-C. The answer under way gets `GRACE_SECONDS`; what waits is refused. A second one ends all."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=4 * GRACE_SECONDS, lifespan="on")
    try:
        _Server(config, app.state.engine).run(sockets=[bound])
    except KeyboardInterrupt:
        pass  # uvicorn has shut down in order, and raises the signal again for whoever else listens
    finally:
        bound.close()
