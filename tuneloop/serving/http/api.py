"""The server: OpenAI's API over an engine. It knows HTTP and the API's shapes, and nothing of models.

Every route but those in `scopes.OPEN` enters through the steps of admission: they are a dependency of the whole
application, so a route that is added later is closed until somebody opens it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tuneloop.base.errors import MachineError, ServeError, TuneloopError, os_words
from tuneloop.base.optional import need
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.access.rate_headers import RATE_HEADERS
from tuneloop.serving.access.scopes import OPEN
from tuneloop.serving.admission import Admission
from tuneloop.serving.batches.batch_runner import BatchRunner
from tuneloop.serving.engine import Engine
from tuneloop.serving.http.body import MOST_BYTES
from tuneloop.serving.http.drain import Drain, DrainGate
from tuneloop.serving.http.errors import error_body, headers_of, status_of
from tuneloop.serving.http.leaving import Leaving
from tuneloop.serving.http.lifecycle import signals
from tuneloop.serving.http.logs import flush
from tuneloop.serving.http.metrics import ServerMetrics
from tuneloop.serving.http.observer import Observer
from tuneloop.serving.record_keeper import RecordKeeper
from tuneloop.serving.steps import AdmissionPath

for _module in ("fastapi", "uvicorn"):
    need(_module, extra="serve")

import uvicorn  # noqa: E402
from fastapi import Depends, FastAPI, Request, Response  # noqa: E402
from fastapi.responses import JSONResponse  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402
from starlette.middleware.cors import CORSMiddleware  # noqa: E402
from starlette.requests import ClientDisconnect  # noqa: E402

from tuneloop.serving.http.routes import (  # noqa: E402
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
    page,
)
from tuneloop.serving.http.routes.context import ServerContext  # noqa: E402

__all__ = ["GRACE_SECONDS", "MOST_BYTES", "create_app", "listen", "run"]

log = logging.getLogger("tuneloop.serving")
DEFAULTS = ServePart()
GRACE_SECONDS = 5
"""How long answers under way may go on after Ctrl-C."""
FAMILIES = (chat, completions, embeddings, classify, models, feedback, files, batches, health, description, page)
"""The modules of the routes."""


def create_app(
    engine: Engine,
    *,
    admission: Sequence[Admission],
    model_name: str = "",
    settings: ServePart = DEFAULTS,
    reread: Callable[[], Sequence[Admission]] | None = None,
    keeper: RecordKeeper | None = None,
    close: Sequence[Callable[[], object]] = (),
) -> FastAPI:
    """An application that answers by `engine`, and closes it at its end.

    `admission` are the steps that a request passes, in order (`application.admission_steps`); `model_name` is what the
    console calls that which is served; `reread` makes the steps anew from settings that may have changed (SIGHUP);
    `keeper` has the store of feedback and batches, None for a server without one; `close` is called at the end, after
    the steps have let go of what they hold.
    """
    steps, drain = AdmissionPath(admission, engine), Drain()
    runner: BatchRunner | None = None

    async def reload() -> None:
        await _reload(steps, reread)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if runner is not None:
            runner.start()
        with signals(drain, settings.drain, reload):
            yield
        if runner is not None:
            await runner.stop()
        await asyncio.to_thread(engine.close)
        await steps.close()
        for work in (*([] if keeper is None else [keeper.close]), *close, flush):
            await asyncio.to_thread(work)

    async def enter(request: Request) -> None:
        if request.scope["route"].path not in OPEN:
            await steps.enter(request)

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
    metrics = ServerMetrics(engine, steps.gauges)
    context = ServerContext(engine, steps.submit, metrics, keeper=keeper, runner=runner)
    app.add_middleware(Leaving)
    if settings.cors:
        app.add_middleware(CORSMiddleware, **_cors(settings.cors))
    app.add_middleware(DrainGate, drain=drain)
    app.add_middleware(Observer, metrics=metrics, logged=settings.log == "json")
    app.state.engine, app.state.model_name, app.state.metrics = engine, model_name, metrics
    app.state.runner, app.state.reload = runner, reload
    for family in FAMILIES:
        family.add_routes(app, context)
    return app


async def _reload(steps: AdmissionPath, reread: Callable[[], Sequence[Admission]] | None) -> None:
    """New steps in place of the present ones; those stay where the new settings are wrong."""
    if reread is None:
        return
    try:
        steps.use(await asyncio.to_thread(reread))
        await steps.close_retired()
    except TuneloopError as error:
        faulty = [str(cause.where) for cause in error.causes if cause.where]
        fields = {"code": error.code, "where": str(error.where or "")} | ({"settings": faulty} if faulty else {})
        if error.code == "TL-SERVE-POLICY":  # of the other settings no value, which may be a secret
            fields["error"] = str(error.facts["error"])
        log.error("reload failed", extra={"fields": fields})
    except Exception:
        log.exception("reload failed")
    else:
        log.warning("reloaded")


def _cors(origins: list[str]) -> dict[str, Any]:
    """What pages of other origins may do. No cookies: a key is sent by the page itself."""
    return {
        "allow_origins": origins,
        "allow_methods": ["GET", "POST", "DELETE"],
        "allow_headers": ["Authorization", "Content-Type", "X-Request-Id"],
        "expose_headers": ["Retry-After", "X-Request-Id", *RATE_HEADERS],
    }


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TuneloopError)
    _note(request, error.code)
    places = getattr(request.state, "places", None)
    return JSONResponse(error_body(error, places), status_of(error), headers_of(error))


def _note(request: Request, code: str) -> None:
    """For the log and the metrics."""
    request.state.code = code
    request.app.state.metrics.refused(code)


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
    _note(request, coded.code)
    return JSONResponse(error_body(coded), error.status_code, error.headers)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """The client has gone while it sent: nobody reads the answer, 499 is for the logs."""
    return Response(status_code=499)


async def _on_fault(request: Request, error: Exception) -> Response:
    """A fault of ours: the client learns that there was one, the log (the framework's) where."""
    _note(request, "TL-SERVE-FAILED")
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

    def __init__(self, config: uvicorn.Config, engine: Engine, runner: BatchRunner | None) -> None:
        super().__init__(config)
        self._engine, self._runner = engine, runner

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._runner is not None:
            await self._runner.stop()  # before the engine: what it says while it closes is no line's answer
        closing = asyncio.ensure_future(asyncio.to_thread(self._engine.close, GRACE_SECONDS))
        await super().shutdown(sockets)
        if self.force_exit:
            await asyncio.to_thread(self._engine.close)
        await closing


def run(app: FastAPI, bound: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM. At Ctrl-C the answer under way gets `GRACE_SECONDS`, and what waits is refused; a
    second one ends all. At SIGTERM both go on to their end (`serve.drain`), and new requests are refused."""
    # uvicorn raises the signal again at its end, for whoever else listens: this one has been heard by then.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=4 * GRACE_SECONDS, lifespan="on")
    try:
        _Server(config, app.state.engine, app.state.runner).run(sockets=[bound])
    except KeyboardInterrupt:
        pass  # uvicorn has shut down in order, and raises the signal again for whoever else listens
    finally:
        signal.signal(signal.SIGTERM, before)
        bound.close()
