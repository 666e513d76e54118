"""One question under way and all who wait for its answer: it is computed once, and each reads it from the start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from tuneloop.base.errors import ServeError
from tuneloop.serving.engine import Piece


class Flight:
    """What computes an answer, in a task of its own: it ends with its answer, or when nobody waits for it any more.

    `people` are the digests of those who wait or have waited. `work` calls `accept`, `add`, and `end`.
    """

    def __init__(self, work: Callable[[Flight], Coroutine[Any, Any, None]], landed: Callable[[Flight], None]) -> None:
        self.pieces: list[Piece] = []
        self.prompt_tokens = self.cached_tokens = 0
        self.people: set[str] = set()
        self.accepted = self.ended = False
        self.behind = False
        """Whether it waits in the queue behind all who wait for an answer."""
        self._error: BaseException | None = None
        self._readers = 0
        self._news = asyncio.Event()
        self._landed = landed
        self._task = asyncio.get_running_loop().create_task(self._run(work))

    async def _run(self, work: Callable[[Flight], Coroutine[Any, Any, None]]) -> None:
        try:
            await work(self)
        except asyncio.CancelledError:
            self._fail(ServeError("TL-SERVE-CLOSING"))
            raise
        except Exception as error:
            self._fail(error)
        finally:
            self._landed(self)

    def accept(self, prompt_tokens: int, cached_tokens: int) -> None:
        """The engine has taken the question."""
        self.prompt_tokens, self.cached_tokens, self.accepted = prompt_tokens, cached_tokens, True
        self._tell()

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self._tell()

    def end(self, prompt_tokens: int, cached_tokens: int) -> None:
        """No more pieces come; the tokens may be known only now."""
        self.prompt_tokens, self.cached_tokens = prompt_tokens, cached_tokens
        self.accepted = self.ended = True
        self._tell()

    def _fail(self, error: BaseException) -> None:
        if not self.ended:
            self._error, self.ended = error, True
            self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def join(self, person: str) -> SharedStream:
        """The answer for one more."""
        if person:
            self.people.add(person)
        self._readers += 1
        return SharedStream(self)

    def leave(self) -> None:
        """One does not wait any more. When none does, the answer is given up, unless it is there."""
        self._readers -= 1
        if self._readers == 0 and not self.ended:
            self._landed(self)
            self._task.cancel()

    async def until_accepted(self) -> None:
        """Raises what the question is refused with."""
        while not self.accepted:
            if self._error is not None:
                raise self._error
            await self._news.wait()

    async def piece(self, number: int) -> Piece | None:
        """Piece `number`, once it is there; None behind the last one. Raises the error of the answer in its place."""
        while number >= len(self.pieces):
            if self._error is not None:
                raise self._error
            if self.ended:
                return None
            await self._news.wait()
        return self.pieces[number]


class SharedStream:
    """An AnswerStream that reads a flight."""

    def __init__(self, flight: Flight) -> None:
        self._flight, self._next, self._open = flight, 0, True

    @property
    def prompt_tokens(self) -> int:
        return self._flight.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        return self._flight.cached_tokens

    def __aiter__(self) -> SharedStream:
        return self

    async def __anext__(self) -> Piece:
        piece = await self._flight.piece(self._next) if self._open else None
        if piece is None:
            raise StopAsyncIteration
        self._next += 1
        return piece

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            self._flight.leave()
