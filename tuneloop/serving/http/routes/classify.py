"""POST /v1/classify: the label of a text, where the model is a classifier."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from tuneloop.base.errors import ServeError
from tuneloop.serving.http.body import read_body
from tuneloop.serving.http.events import pieces_of, unless_gone, usage
from tuneloop.serving.http.routes.context import ServerContext
from tuneloop.serving.http.shapes import Classification
from tuneloop.serving.http.text_requests import ClassifyRequest


def add_routes(app: FastAPI, context: ServerContext) -> None:
    @app.post("/v1/classify")
    async def classify(request: Request) -> Response:
        body = await read_body(request, ClassifyRequest)
        model = next((one for one in await context.engine.models() if one.name == body.model), None)
        if model is not None and not model.labels:
            raise ServeError("TL-SERVE-NO-LABELS", where="model", param="model", model=body.model)
        stream = await context.ask(request, [body.query()], body.places)
        pieces = await unless_gone(request, pieces_of(stream), stream)
        if pieces is None:
            return Response(status_code=499)  # nobody reads it: for the logs
        scores = next((piece.labels for piece in pieces if piece.labels is not None), None)
        if not scores:
            raise ServeError("TL-SERVE-FAILED", error="no label")
        answer: Classification = {
            "object": "classification",
            "model": body.model,
            "label": "".join(piece.text for piece in pieces) or max(scores, key=lambda label: scores[label]),
            "scores": dict(scores),
            "usage": usage(stream, None),
        }
        return JSONResponse(answer)
