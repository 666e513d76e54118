"""GET /openapi.json: what the API takes and gives. There is no page: it would load scripts from elsewhere."""

from __future__ import annotations

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from tuneloop.serving.http.openapi import document
from tuneloop.serving.http.routes.context import ServerContext


def add_routes(app: FastAPI, context: ServerContext) -> None:
    @app.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(document())
