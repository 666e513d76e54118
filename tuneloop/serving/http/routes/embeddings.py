"""POST /v1/embeddings, where the model is an encoder."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from tuneloop.base.errors import ServeError
from tuneloop.serving.http.body import read_body
from tuneloop.serving.http.events import pieces_of, unless_gone, usage
from tuneloop.serving.http.routes.context import ServerContext
from tuneloop.serving.http.shapes import EmbeddingEntry, EmbeddingList
from tuneloop.serving.http.text_requests import EmbeddingRequest


def add_routes(app: FastAPI, context: ServerContext) -> None:
    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        body = await read_body(request, EmbeddingRequest)
        await context.model_for("vector", body.model)
        queries = body.queries()
        stream = await context.ask(request, queries, body.places)
        pieces = await unless_gone(request, pieces_of(stream), stream)
        if pieces is None:
            return Response(status_code=499)  # nobody reads it: for the logs
        vectors = {piece.choice: piece.vector for piece in pieces if piece.vector is not None}
        if len(vectors) < len(queries):
            raise ServeError("TL-SERVE-FAILED", error="a vector is missing")
        as_text = body.encoding_format == "base64"
        answer: EmbeddingList = {
            "object": "list",
            "data": [_embedding(k, vectors[k], as_text) for k in range(len(queries))],
            "model": body.model,
            "usage": usage(stream, None),
        }
        return JSONResponse(answer)


def _embedding(index: int, vector: Sequence[float], as_text: bool) -> EmbeddingEntry:
    return {"object": "embedding", "index": index, "embedding": packed(vector) if as_text else list(vector)}


def packed(vector: Sequence[float]) -> str:
    """Base64 of the numbers as little-endian float32: what OpenAI's client asks for.

    >>> packed([1.0, -2.0])
    'AACAPwAAAMA='
    """
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode("ascii")
