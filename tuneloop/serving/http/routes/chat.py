"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from tuneloop.serving.http.body import read_body
from tuneloop.serving.http.chat_request import ChatRequest
from tuneloop.serving.http.chat_writer import ChatWriter
from tuneloop.serving.http.events import written
from tuneloop.serving.http.routes.context import ServerContext


def add_routes(app: FastAPI, context: ServerContext) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await read_body(request, ChatRequest)
        query = body.query()
        writer = ChatWriter(body.model, query.n, scored=query.logprobs is not None)
        request.state.reply_id = writer.id
        stream = await context.ask(request, [query], body.places)
        return await written(request, body, writer, stream)
