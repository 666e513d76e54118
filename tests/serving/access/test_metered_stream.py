"""The tokens of an answer that is left before its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

from tuneloop.serving.access.metered_stream import MeteredStream
from tuneloop.serving.engine import AnswerStream, Piece


class Left:
    prompt_tokens, cached_tokens = 7, 0

    def __init__(self, *pieces: Piece) -> None:
        self._pieces = iter(pieces)

    def __aiter__(self) -> AsyncIterator[Piece]:
        return cast(Any, self)

    async def __anext__(self) -> Piece:
        return next(self._pieces)

    async def aclose(self) -> None: ...


def test_pieces_that_came_at_once_count_each() -> None:
    async def used() -> int:
        async def at_end() -> None: ...

        pieces = (
            Piece(text="a"),
            Piece(text="bcd", count=3),
            Piece(1, "x", count=9),
            Piece(1, finish="stop", tokens=2),
        )
        stream = MeteredStream(cast(AnswerStream, Left(*pieces)), 5, at_end)
        for _ in pieces:
            await anext(stream)
        return stream.used

    assert asyncio.run(used()) == 7 + 4 + 2
