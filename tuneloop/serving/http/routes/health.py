"""GET /healthz and /health: the server is alive; /ready: a request would be answered now; /metrics: figures."""

from __future__ import annotations

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from tuneloop.base.errors import ServeError
from tuneloop.serving.http.routes.context import ServerContext
from tuneloop.serving.http.shapes import Health


def add_routes(app: FastAPI, context: ServerContext) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        return _alive(context)

    @app.get("/health")
    async def health() -> Response:
        return _alive(context)

    @app.get("/ready")
    async def ready() -> Response:
        if context.engine.open and not context.engine.ready:
            raise ServeError("TL-SERVE-LOADING", seconds=context.engine.retry_after)
        return _alive(context)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(context.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _alive(context: ServerContext) -> Response:
    if not context.engine.open:
        raise ServeError("TL-SERVE-CLOSING")
    answer: Health = {"status": "ok"}
    return JSONResponse(answer)
