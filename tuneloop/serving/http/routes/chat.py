"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from tuneloop.serving.http.body import read_body
from tuneloop.serving.http.chat_request import ChatRequest
from tuneloop.serving.http.chat_writer import ChatWriter
from tuneloop.serving.http.events import EventStream, events, pieces_of, unless_gone, usage
from tuneloop.serving.http.routes.context import ServerContext


def add_routes(app: FastAPI, context: ServerContext) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await read_body(request, ChatRequest)
        query = body.query()
        writer = ChatWriter(body.model, query.n, scored=query.logprobs is not None)
        request.state.reply_id = writer.id
        stream = await context.ask(request, [query], body.places)
        if body.stream:
            return EventStream(events(writer, stream, body.with_usage, body.places), stream)
        pieces = await unless_gone(request, pieces_of(stream), stream)
        if pieces is None:
            return Response(status_code=499)  # nobody reads it: for the logs
        return JSONResponse(writer.completion(pieces, usage(stream, sum(piece.tokens for piece in pieces))))
