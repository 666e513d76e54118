"""Answers that another process or server writes: an AnswerStream over its events, and all that are open."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tuneloop.base.errors import ServeError
from tuneloop.base.language import t
from tuneloop.serving.engine import Piece
from tuneloop.serving.upstream.upstream import EventReader
from tuneloop.serving.upstream.upstream_answer import OddAnswer


class PieceReader(Protocol):
    """Makes pieces of a server's events."""

    prompt_tokens: int
    cached_tokens: int

    def pieces(self, event: Mapping[str, Any]) -> list[Piece]: ...

    def ending(self) -> list[Piece]: ...


class UpstreamStream:
    """The answers of one request. `failed` makes another error of one that ends it (a child that is gone, say)."""

    def __init__(
        self,
        events: EventReader,
        reader: PieceReader,
        open_streams: OpenStreams,
        *,
        failed: Callable[[ServeError], ServeError] = lambda error: error,
        first: Sequence[Piece] = (),
    ) -> None:
        self._events, self._reader, self._failed = events, reader, failed
        self._open_streams = open_streams
        self._pieces = list(reversed(first))
        self._failure: BaseException | None = None
        """What the next piece fails with."""
        self._ended, self._cut = False, False
        self._limit: asyncio.Timeout | None = None
        self._hanging_up: asyncio.Task[None] | None = None
        self.loop = asyncio.get_running_loop()
        self.released: Callable[[], None] = lambda: None
        open_streams.add(self)

    @property
    def prompt_tokens(self) -> int:
        return self._reader.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        return self._reader.cached_tokens

    def __aiter__(self) -> UpstreamStream:
        return self

    async def __anext__(self) -> Piece:
        while not self._pieces:
            if self._cut:
                await self.aclose()
                raise ServeError("TL-SERVE-CLOSING")
            if self._ended:
                await self.aclose()
                raise StopAsyncIteration
            try:
                self._pieces = [*reversed(await self._at_once())]
            except BaseException:
                await self.aclose()
                raise
        return self._pieces.pop()

    async def _at_once(self) -> list[Piece]:
        """The pieces of the next event and of all that have come with it: a server that is hurried hands on fewer."""
        if self._failure is not None:
            raise self._failure
        pieces = list(await self._more())
        while self._events.at_hand and not self._ended:
            try:
                pieces += await self._more()
            except ServeError as error:  # what has come before it is handed on first
                self._failure = error
                break
        return joined(pieces)

    async def _more(self) -> list[Piece]:
        """The pieces of the next event."""
        try:
            if self._events.at_hand:
                event = await self._events.next()
            else:
                async with asyncio.timeout(None) as self._limit:
                    event = await self._events.next()
            if event is None:
                self._ended = True
                return self._reader.ending()
            if event.get("error"):
                raise self._events.upstream.in_stream(event["error"])
            return self._reader.pieces(event)
        except TimeoutError:
            if not self._cut:
                raise
            raise ServeError("TL-SERVE-CLOSING") from None
        except OddAnswer as error:
            words = t("an answer of unknown form: {got}", got=str(error))
            raise self._failed(self._events.upstream.fault(words)) from error
        except ServeError as error:
            raise self._failed(error) from error
        finally:
            self._limit = None

    def cut(self) -> None:
        """End it with TL-SERVE-CLOSING, at once, from another task of its event loop."""
        self._cut = True
        if self._limit is not None:
            self._limit.reschedule(self.loop.time())
        else:  # nobody waits for it just now
            self._hanging_up = self.loop.create_task(self.aclose())

    async def aclose(self) -> None:
        self._ended = True
        if self._open_streams.remove(self):
            self.released()
        await self._events.aclose()


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same pieces, bare texts of one choice that follow each other as one.

    >>> [(p.text, p.count) for p in joined([Piece(text="a"), Piece(text="b"), Piece(1, "c"), Piece(finish="stop")])]
    [('ab', 2), ('c', 1), ('', 1)]
    """
    out: list[Piece] = []
    texts: list[str] = []
    for piece in pieces:
        bare = bool(piece.text) and not (piece.thought or piece.calls or piece.scores or piece.finish)
        if texts and not (bare and piece.choice == out[-1].choice):
            out[-1] = _one(out[-1], texts)
            texts = []
        if not (bare and texts):
            out.append(piece)
        if bare:
            texts.append(piece.text)
    if texts:
        out[-1] = _one(out[-1], texts)
    return out


def _one(piece: Piece, texts: Sequence[str]) -> Piece:
    return piece if len(texts) == 1 else Piece(piece.choice, "".join(texts), count=len(texts))


class VectorStream:
    """An answer that is there already: one piece."""

    def __init__(self, piece: Piece, prompt_tokens: int) -> None:
        self._piece: Piece | None = piece
        self.prompt_tokens, self.cached_tokens = prompt_tokens, 0

    def __aiter__(self) -> VectorStream:
        return self

    async def __anext__(self) -> Piece:
        piece, self._piece = self._piece, None
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        self._piece = None


class OpenStreams:
    """The streams that have not ended; closing gives them a time, and then cuts them off."""

    def __init__(self) -> None:
        self._streams = set[UpstreamStream]()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: UpstreamStream) -> None:
        with self._changed:
            self._streams.add(stream)

    def remove(self, stream: UpstreamStream) -> bool:
        """Whether it was open."""
        with self._changed:
            there = stream in self._streams
            self._streams.discard(stream)
            self._changed.notify_all()
            return there

    def close(self, grace: float, patience: float = 5.0) -> None:
        """Wait `grace` seconds for the streams to end, cut the others, and wait for those. Not on their event loop."""
        with self._changed:
            self._changed.wait_for(lambda: not self._streams, grace)
            left = list(self._streams)
        for stream in left:
            try:
                stream.loop.call_soon_threadsafe(stream.cut)
            except RuntimeError:  # its loop has ended, and nobody waits
                self.remove(stream)
        with self._changed:
            self._changed.wait_for(lambda: not self._streams, patience)
