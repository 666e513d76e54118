"""The server: OpenAI's API over an engine. It knows HTTP and the API's shapes, and nothing of models.

Every route but those in `PUBLIC` enters through the steps of admission: they are a dependency of the whole application,
so a route that is added later is closed until somebody opens it.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tuneloop.base.errors import MachineError, ServeError, TuneloopError, os_words
from tuneloop.base.optional import need
from tuneloop.serving.admission import Admission, enter_all, through
from tuneloop.serving.batches.batch_runner import BatchRunner
from tuneloop.serving.engine import Engine
from tuneloop.serving.http.body import MOST_BYTES
from tuneloop.serving.http.errors import error_body, headers_of, status_of
from tuneloop.serving.http.metrics import RequestCounter, ServerMetrics
from tuneloop.serving.record_keeper import RecordKeeper

for _module in ("fastapi", "uvicorn"):
    need(_module, extra="serve")

import uvicorn  # noqa: E402
from fastapi import Depends, FastAPI, Request, Response  # noqa: E402
from fastapi.responses import JSONResponse  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402
from starlette.requests import ClientDisconnect  # noqa: E402

from tuneloop.serving.http.routes import (  # noqa: E402  # noqa: E402
    batches,
    chat,
    classify,
    completions,
    description,
    embeddings,
    feedback,
    files,
    health,
    models,
)
from tuneloop.serving.http.routes.context import ServerContext  # noqa: E402

__all__ = ["GRACE_SECONDS", "MOST_BYTES", "PUBLIC", "create_app", "listen", "run"]

GRACE_SECONDS = 5
"""How long answers under way may go on after Ctrl-C."""
PUBLIC = frozenset({"healthz", "health", "ready"})
"""Names of the routes that stand before all steps."""
FAMILIES = (chat, completions, embeddings, classify, models, feedback, files, batches, health, description)
"""The modules of the routes."""


def create_app(
    engine: Engine, *, admission: Sequence[Admission], model_name: str = "", keeper: RecordKeeper | None = None
) -> FastAPI:
    """An application that answers by `engine`, and closes it at its end.

    `admission` are the steps that a request passes, in order (`admission.admission_steps`); `model_name` is what the
    console calls that which is served; `keeper` has the store of feedback and batches, None for a server without one.
    """
    runner: BatchRunner | None = None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if runner is not None:
            runner.start()
        yield
        if runner is not None:
            await runner.stop()
        await asyncio.to_thread(engine.close)
        if keeper is not None:
            await asyncio.to_thread(keeper.close)

    async def enter(request: Request) -> None:
        if request.scope["route"].name not in PUBLIC:
            await enter_all(admission, request)

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
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_fault)
    if keeper is not None and keeper.batches.enabled:
        runner = BatchRunner(app, engine, keeper.archive, keeper.batches.at_once)
    context = ServerContext(engine, through(admission, engine), ServerMetrics(engine), keeper=keeper, runner=runner)
    app.add_middleware(RequestCounter, metrics=context.metrics)
    app.state.engine, app.state.model_name = engine, model_name
    for family in FAMILIES:
        family.add_routes(app, context)
    return app


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TuneloopError)
    places = getattr(request.state, "places", None)
    return JSONResponse(error_body(error, places), status_of(error), headers_of(error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    codes = {404: "TL-SERVE-ROUTE", 405: "TL-SERVE-METHOD"}
    coded = ServeError(
        codes.get(error.status_code, "TL-SERVE-REQUEST"),
        status=error.status_code,
        method=request.method,
        path=request.url.path,
        error=error.detail,
        param=None,
    )
    return JSONResponse(error_body(coded), error.status_code, error.headers)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """The client has gone while it sent: nobody reads the answer, 499 is for the logs."""
    return Response(status_code=499)


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
