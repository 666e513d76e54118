"""POST /v1/completions: continuations of texts."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from tuneloop.serving.http.body import read_body
from tuneloop.serving.http.events import written
from tuneloop.serving.http.routes.context import ServerContext
from tuneloop.serving.http.text_requests import CompletionRequest
from tuneloop.serving.http.text_writer import TextWriter


def add_routes(app: FastAPI, context: ServerContext) -> None:
    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await read_body(request, CompletionRequest)
        queries = body.queries()
        writer = TextWriter(body.model, len(queries) * queries[0].n, likeliest=body.logprobs)
        request.state.reply_id = writer.id
        stream = await context.ask(request, queries, body.places)
        return await written(request, body, writer, stream)
