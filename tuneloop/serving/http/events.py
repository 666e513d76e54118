"""Answers on their way to a client: as server-sent events or whole, and cancelled as soon as nobody reads them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from starlette.responses import JSONResponse, Response, StreamingResponse

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.serving.engine import AnswerStream, Piece
from tuneloop.serving.http.errors import Places, error_body
from tuneloop.serving.http.schemas import GenerationRequest
from tuneloop.serving.http.shapes import TokenUsage

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

log = logging.getLogger("tuneloop.serving")
Answer = TypeVar("Answer")
DONE = "data: [DONE]\n\n"


def event(content: Mapping[str, Any]) -> str:
    """One server-sent event. JSON writes line ends as \\n, so one `data:` line holds it."""
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


class Writer(Protocol):
    """Writes the answers to one request as events that share an id."""

    def first(self) -> Iterable[Mapping[str, Any]]:
        """The events before any piece has come."""

    def chunks(self, piece: Piece) -> Iterator[Mapping[str, Any]]:
        """The events of a piece."""

    def usage_chunk(self, usage: TokenUsage) -> Mapping[str, Any]:
        """The event with the token counts and no choice."""

    def completion(self, pieces: Sequence[Piece], usage: TokenUsage) -> Mapping[str, Any]:
        """The whole answer as one object."""


async def events(writer: Writer, stream: AnswerStream, with_usage: bool, places: Places) -> AsyncIterator[str]:
    """Server-sent events of an answer. A failure after the first byte has no status any more: it is an event itself."""
    extra: dict[str, Any] = {"usage": None} if with_usage else {}
    for chunk in writer.first():
        yield event({**chunk, **extra})
    tokens = 0
    try:
        async for piece in stream:
            tokens += piece.tokens
            for chunk in writer.chunks(piece):
                yield event({**chunk, **extra})
        if with_usage:
            yield event(writer.usage_chunk(usage(stream, tokens)))
        yield DONE
    except TuneloopError as error:
        yield event(error_body(error, places))
    except Exception as error:
        log.exception("an answer failed")
        yield event(error_body(ServeError("TL-SERVE-FAILED", error=type(error).__name__)))


def usage(stream: AnswerStream, tokens: int | None) -> TokenUsage:
    """Token counts of the answers of a stream that has ended; None where nothing is written."""
    counts: TokenUsage = {"prompt_tokens": stream.prompt_tokens, "total_tokens": stream.prompt_tokens + (tokens or 0)}
    if tokens is not None:
        counts["completion_tokens"] = tokens
        counts["prompt_tokens_details"] = {"cached_tokens": stream.cached_tokens}
    return counts


class EventStream(StreamingResponse):
    """A streamed answer that is cancelled when sending ends, however it ends: before the first byte, too."""

    def __init__(self, content: AsyncIterator[str], stream: AnswerStream) -> None:
        super().__init__(
            content, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._stream.aclose()


async def written(request: Request, body: GenerationRequest, writer: Writer, stream: AnswerStream) -> Response:
    """The answer to a request for text, as it is wanted: in events or whole."""
    if body.stream:
        return EventStream(events(writer, stream, body.with_usage, body.places), stream)
    pieces = await unless_gone(request, pieces_of(stream), stream)
    if pieces is None:
        return Response(status_code=499)  # nobody reads it: for the logs
    return JSONResponse(writer.completion(pieces, usage(stream, sum(piece.tokens for piece in pieces))))


async def pieces_of(stream: AnswerStream) -> list[Piece]:
    """All pieces of a stream."""
    return [piece async for piece in stream]


async def unless_gone(request: Request, answer: Awaitable[Answer], stream: AnswerStream) -> Answer | None:
    """What is awaited, or None as soon as the client has hung up; then the answers end at their next token."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    awaited, hung_up = asyncio.ensure_future(answer), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({awaited, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        return awaited.result() if awaited.done() else None
    finally:
        awaited.cancel()
        hung_up.cancel()
        await stream.aclose()
