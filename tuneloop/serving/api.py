"""The server: OpenAI's chat API over an engine. It knows HTTP and the API's shapes, and nothing of models.

Every route but those in `PUBLIC` enters through the steps of admission: they are a dependency of the whole application,
so a route that is added later is closed until somebody opens it.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tuneloop.base.errors import MachineError, ServeError, TuneloopError, os_words
from tuneloop.base.optional import need
from tuneloop.base.records import Reply, Sampling
from tuneloop.serving.admission import Admission, Question, Submit, through
from tuneloop.serving.body_faults import fault_words
from tuneloop.serving.engine import AnswerStream, Engine, Piece, Query
from tuneloop.serving.schemas import (
    DONE,
    ChatRequest,
    ClassifyRequest,
    ResponseWriter,
    classified,
    error_body,
    event,
    model_entry,
    status_of,
)

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
"""Names of the routes that stand before all steps."""


def create_app(engine: Engine, *, model_name: str, admission: Sequence[Admission], max_new_tokens: int) -> FastAPI:
    """An application that answers as `model_name` and closes `engine` at its end.

    `admission` are the steps that a request passes, in order (`admission.admission_steps`); `max_new_tokens` is the
    longest answer of a request that names no length.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    async def enter(request: Request) -> None:
        if request.scope["route"].name not in PUBLIC:
            for step in admission:
                await step.enter(request)

    # No generated documentation: its page loads scripts from a CDN, and its routes would pass by the key.
    app = FastAPI(
        title="tuneloop",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        dependencies=[Depends(enter)],
    )
    app.add_exception_handler(TuneloopError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_fault)
    app.state.engine, app.state.model_name = engine, model_name
    _add_model_routes(app, engine)
    _add_answer_routes(app, model_name, through(admission, engine))
    return app


def _add_model_routes(app: FastAPI, engine: Engine) -> None:
    created = int(time.time())

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        if not engine.open:
            raise ServeError("TL-SERVE-CLOSING")
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        entries = await engine.models()
        return {"object": "list", "data": [model_entry(one.name, created, one.context) for one in entries]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        entries = {one.name: one for one in await engine.models()}
        _known(name, next(iter(entries)))
        return model_entry(name, created, entries[name].context)


def _add_answer_routes(app: FastAPI, model_name: str, submit: Submit) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await _parse(request, ChatRequest)
        _known(body.model, model_name)
        how = Sampling(body.sampling_temperature, 1.0 if body.top_p is None else body.top_p, body.seed)
        query = Query("chat", body.model, body.chat(), max_new_tokens=body.wanted, sampling=how, stop=tuple(body.stops))
        question = Question(request, query)
        stream = await submit(question)
        writer = ResponseWriter(model_name)
        if body.stream:
            with_usage = bool(body.stream_options and body.stream_options.include_usage)
            return _EventStream(_events(writer, stream, with_usage), stream)
        reply = await _unless_gone(request, stream)
        # Nobody reads the answer to a client that has gone; 499 is for the logs.
        return Response(status_code=499) if reply is None else JSONResponse(writer.completion(reply))

    @app.post("/v1/classify")
    async def classify(request: Request) -> Response:
        body = await _parse(request, ClassifyRequest)
        _known(body.model, model_name)
        query = Query("label", body.model, body.chat(), max_new_tokens=1)
        reply = await _unless_gone(request, await submit(Question(request, query)))
        return Response(status_code=499) if reply is None else JSONResponse(classified(model_name, reply))


def _known(name: str, served: str) -> None:
    if name != served:
        raise ServeError("TL-SERVE-MODEL", where="model", param="model", got=name[:200], known=served)


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
        raise ServeError("TL-SERVE-REQUEST", where=param or "body", param=param, error=fault_words(first)) from error


async def _unless_gone(request: Request, stream: AnswerStream) -> Reply | None:
    """The whole reply, or None as soon as the client has hung up; then the answer ends at its next token."""

    async def last() -> Reply:
        pieces = [piece async for piece in stream]
        return _reply(pieces, stream)

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
        await stream.aclose()


def _reply(pieces: Sequence[Piece], stream: AnswerStream) -> Reply:
    text, end = "".join(piece.text for piece in pieces), pieces[-1]
    finish: Any = end.finish
    scores = None if end.labels is None else dict(end.labels)
    return Reply(text, stream.prompt_tokens, end.tokens, finish, 0.0, scores)


async def _events(writer: ResponseWriter, stream: AnswerStream, with_usage: bool) -> AsyncIterator[str]:
    """Server-sent events of an answer. A failure after the first byte has no status any more: it is an event itself."""
    extra: dict[str, Any] = {"usage": None} if with_usage else {}
    yield writer.chunk({"role": "assistant", "content": ""}, **extra)
    try:
        async for piece in stream:
            if piece.text:
                yield writer.chunk({"content": piece.text}, **extra)
            if piece.finish is None:
                continue
            yield writer.chunk({}, piece.finish, **extra)
            if with_usage:
                yield writer.usage_chunk(_reply([piece], stream))
            yield DONE
    except TuneloopError as error:
        yield event(error_body(error))


class _EventStream(StreamingResponse):
    """A streamed answer that is cancelled when sending ends, however it ends: before the first byte, too."""

    def __init__(self, events: AsyncIterator[str], stream: AnswerStream) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._stream.aclose()


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TuneloopError)
    status, headers = status_of(error), {}
    if status in {429, 503}:
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
        method=request.method,
        path=request.url.path,
        error=error.detail,
        param=None,
    )
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

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
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
