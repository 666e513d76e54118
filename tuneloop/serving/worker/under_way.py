"""A query that an engine's process answers, and its answers as they reach the event loop of whoever asked."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable

from tuneloop.serving.engine import Piece, Query

Happening = Piece | int | BaseException
"""What reaches a query: the tokens of its prompt once it is accepted, then pieces; or an error."""


class QueryUnderWay:
    """A query with what has come for it and was not read yet: at most its own answer."""

    def __init__(self, number: int, query: Query, loop: asyncio.AbstractEventLoop) -> None:
        self.number, self.query, self.loop = number, query, loop
        self.events: asyncio.Queue[Happening] = asyncio.Queue()
        self.unfinished = query.n
        """Choices that have not come whole."""
        self.began = time.monotonic()
        self.accepted = False
        self.cached_tokens = 0


def hand_out(events: list[tuple[QueryUnderWay, Happening]]) -> list[QueryUnderWay]:
    """Hand events to the loops of those who asked, from any thread: one call for each loop. Those whose loops have
    ended."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[QueryUnderWay, Happening]]] = defaultdict(list)
    for one, event in events:
        by_loop[one.loop].append((one, event))
    left = []
    for loop, its in by_loop.items():
        try:
            loop.call_soon_threadsafe(_take, its)
        except RuntimeError:
            left += [one for one, _ in its]
    return left


def _take(events: list[tuple[QueryUnderWay, Happening]]) -> None:
    for one, event in events:
        one.events.put_nowait(event)


class AnswersUnderWay:
    """The pieces of one query, in order. Ends when each choice has finished; an error of the query is raised here."""

    def __init__(self, under_way: QueryUnderWay, prompt_tokens: int, cancel: Callable[[QueryUnderWay], None]) -> None:
        self._under_way, self._cancel = under_way, cancel
        self.prompt_tokens = prompt_tokens
        self._unfinished = under_way.query.n

    @property
    def cached_tokens(self) -> int:
        return self._under_way.cached_tokens

    def __aiter__(self) -> AnswersUnderWay:
        return self

    async def __anext__(self) -> Piece:
        if self._unfinished <= 0:
            raise StopAsyncIteration
        try:
            event = await self._under_way.events.get()
        except BaseException:
            await self.aclose()
            raise
        if isinstance(event, BaseException):
            await self.aclose()
            raise event
        assert isinstance(event, Piece)
        self._unfinished -= event.finish is not None
        return event

    async def aclose(self) -> None:
        """Nobody listens any more: the query is taken out, or stopped before its next token."""
        self._unfinished = 0
        self._cancel(self._under_way)
