"""Several prompts of one request: one stream, so many at once, and all ended together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import cast

import pytest
from starlette.requests import Request

from tests.serving.scripted import NAME, ScriptedEngine, ScriptedStream
from tuneloop.base.errors import ServeError
from tuneloop.serving.access.fair_queue import Queue
from tuneloop.serving.admission import Question, through
from tuneloop.serving.answers.several import submit_all
from tuneloop.serving.engine import Piece, Query


def named(query: Query) -> Iterator[Piece]:
    for choice in range(query.n):
        yield Piece(choice, f"{query.prompt}{choice}")
    for choice in range(query.n):
        yield Piece(choice, finish="stop", tokens=2)


def questions(count: int, n: int = 1) -> list[Question]:
    return [Question(cast(Request, None), Query("text", NAME, prompt=chr(97 + k), n=n)) for k in range(count)]


@pytest.mark.parametrize("at_once", [1, 2, 3, 9])
def test_the_choices_of_one_prompt_follow_those_of_the_one_before(at_once: int) -> None:
    async def main() -> None:
        engine = ScriptedEngine(named)
        stream = await submit_all(engine.submit_question, questions(5, 2), at_once)
        texts, ended, tokens = {}, [], 0
        async for piece in stream:
            texts[piece.choice] = texts.get(piece.choice, "") + piece.text
            ended += [piece.choice] if piece.finish else []
            tokens += piece.tokens
        assert [texts[k] for k in range(10)] == [f"{letter}{k}" for letter in "abcde" for k in (0, 1)]
        assert sorted(ended) == list(range(10))
        assert tokens == 20
        assert (stream.prompt_tokens, stream.cached_tokens) == (35, 15)
        assert engine.most <= at_once

    asyncio.run(main())


class Accepting(ScriptedEngine):
    """Takes longer to accept a query than to answer it."""

    async def submit(self, query: Query) -> ScriptedStream:
        await asyncio.sleep(0.01)
        return await super().submit(query)


@pytest.mark.parametrize("count", [2, 5, 9])
def test_answers_that_end_before_the_last_prompt_is_accepted(count: int) -> None:
    async def main() -> None:
        engine = Accepting(named)
        stream = await submit_all(engine.submit_question, questions(count), 9)
        assert sorted([piece.choice async for piece in stream if piece.finish]) == list(range(count))
        assert len(engine.queries) == count

    asyncio.run(main())


def test_a_lone_prompt_is_the_engines_own_stream() -> None:
    async def main() -> None:
        engine = ScriptedEngine(named)
        assert await submit_all(engine.submit_question, questions(1), 4) is engine.streams[0]

    asyncio.run(main())


def test_many_prompts_do_not_fill_a_queue_of_none() -> None:
    async def main() -> None:
        engine = ScriptedEngine(named, capacity=2)
        submit = through([Queue(engine, 0)], engine)
        stream = await submit_all(submit, questions(20), engine.capacity)
        assert len([piece async for piece in stream if piece.finish]) == 20

    asyncio.run(main())


def test_one_that_is_refused_at_once_refuses_all_and_leaves_none_behind() -> None:
    async def main() -> None:
        engine = ScriptedEngine(named, capacity=2)
        with pytest.raises(ServeError, match="TL-SERVE-FULL"):
            await submit_all(through([Queue(engine, 0)], engine), questions(5), 5)
        assert len(engine.streams) == 2
        assert all(stream.closed for stream in engine.streams)
        assert engine.pending == 0

    asyncio.run(main())


def test_an_error_of_one_ends_all() -> None:
    async def main() -> None:
        engine = ScriptedEngine(named)
        engine.failure, engine.fails_after = ServeError("TL-SERVE-FAILED", error="x"), 1
        stream = await submit_all(engine.submit_question, questions(4), 2)
        with pytest.raises(ServeError, match="TL-SERVE-FAILED"):
            _ = [piece async for piece in stream]
        assert engine.pending == 0
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(main())


def test_closing_cancels_all_and_submits_no_more() -> None:
    async def main() -> None:
        engine = ScriptedEngine(named)
        engine.seconds = 0.01
        stream = await submit_all(engine.submit_question, questions(9), 3)
        await anext(stream)
        await stream.aclose()
        assert all(one.closed for one in engine.streams)
        assert engine.pending == 0
        count = len(engine.streams)
        await asyncio.sleep(0.05)
        assert len(engine.streams) == count < 9

    asyncio.run(main())
