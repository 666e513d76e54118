"""The engine: one at a time, bounded, cancellable between tokens, and never in the event loop's way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.base.records import Reply
from tuneloop.inference.generate import Answerer
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.load import load_model
from tuneloop.serving.torch_engine import Stream, TorchEngine

CHAT = [{"role": "user", "content": "Who are you?"}]
LONG = {"max_new_tokens": 400, "temperature": 1.0, "seed": 1}


@pytest.fixture(scope="module")
def answerer(tiny_model: Path) -> Answerer:
    made = Answerer(load_model(tiny_model), load_tokenizer(tiny_model))
    made.stops = frozenset()  # a random model might end early; these tests need answers of known length
    return made


class Slow:
    """Makes each token of the model take at least `seconds`, and counts them."""

    def __init__(self, model: torch.nn.Module, seconds: float) -> None:
        self.tokens, self.seconds = 0, seconds
        self._hook = model.register_forward_pre_hook(self._wait)

    def _wait(self, *_: Any) -> None:
        self.tokens += 1
        time.sleep(self.seconds)

    def remove(self) -> None:
        self._hook.remove()


@pytest.fixture
def slow(answerer: Answerer) -> Iterator[Slow]:
    made = Slow(answerer.model, 0.02)
    yield made
    made.remove()


@asynccontextmanager
async def engine_of(answerer: Answerer) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(answerer)
    try:
        yield engine
    finally:
        await asyncio.to_thread(engine.close)


async def collect(items: Stream) -> tuple[list[str], Reply]:
    pieces: list[str] = []
    async for item in items:
        if isinstance(item, Reply):
            return pieces, item
        pieces.append(item)
    raise AssertionError("no reply")


async def until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        await asyncio.sleep(0.005)


def test_it_says_what_the_answerer_says(answerer: Answerer) -> None:
    expected = answerer.answer([CHAT], max_new_tokens=24)[0]

    async def main() -> None:
        async with engine_of(answerer) as engine:
            pieces, reply = await collect(engine.submit(CHAT, max_new_tokens=24))
            assert "".join(pieces) == reply.text == expected.text
            assert (reply.tokens, reply.prompt_tokens, reply.finish) == (24, expected.prompt_tokens, "length")
            assert await engine.count(CHAT) == expected.prompt_tokens
            assert engine.context == 512

    asyncio.run(main())


def test_pieces_are_whole_characters(answerer: Answerer) -> None:
    async def main() -> None:
        async with engine_of(answerer) as engine:
            for seed in range(4):
                items = engine.submit(CHAT, max_new_tokens=60, temperature=1.5, seed=seed)
                pieces, reply = await collect(items)
                assert "".join(pieces) == reply.text
                for piece in pieces[:-1]:
                    assert not piece.endswith("\ufffd")

    asyncio.run(main())


def test_the_event_loop_goes_on(answerer: Answerer, slow: Slow) -> None:
    async def main() -> None:
        async with engine_of(answerer) as engine:
            task = asyncio.ensure_future(collect(engine.submit(CHAT, max_new_tokens=20)))
            beats = 0
            while not task.done():
                await asyncio.sleep(0.005)
                beats += 1
            assert beats > 20

    asyncio.run(main())


def test_one_at_a_time_in_the_order_they_came(answerer: Answerer) -> None:
    async def main() -> None:
        async with engine_of(answerer) as engine:
            done: list[int] = []

            async def ask(n: int, items: Stream) -> None:
                await collect(items)
                done.append(n)

            await asyncio.gather(*(ask(n, engine.submit(CHAT, max_new_tokens=4)) for n in range(5)))
            assert done == [0, 1, 2, 3, 4]

    asyncio.run(main())


def test_closing_the_iterator_ends_the_answer_at_the_next_token(answerer: Answerer, slow: Slow) -> None:
    async def main() -> None:
        async with engine_of(answerer) as engine:
            items = engine.submit(CHAT, **LONG)
            await until(lambda: slow.tokens >= 3)
            await items.aclose()
            at = slow.tokens
            await until(lambda: not engine.busy)
            assert slow.tokens <= at + 2
            with pytest.raises(StopAsyncIteration):
                await anext(items)
            assert (await collect(engine.submit(CHAT, max_new_tokens=2)))[1].tokens == 2

    asyncio.run(main())


def test_cancelling_the_task_ends_the_answer(answerer: Answerer, slow: Slow) -> None:
    async def main() -> None:
        async with engine_of(answerer) as engine:
            task = asyncio.ensure_future(collect(engine.submit(CHAT, **LONG)))
            await until(lambda: slow.tokens >= 3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            at = slow.tokens
            await until(lambda: not engine.busy)
            assert slow.tokens <= at + 2

    asyncio.run(main())


def test_a_loop_that_ended_does_not_hold_the_engine(answerer: Answerer, slow: Slow) -> None:
    engine = TorchEngine(answerer)

    async def leave() -> None:
        engine.submit(CHAT, **LONG)
        await until(lambda: engine.busy)

    asyncio.run(leave())
    asyncio.run(until(lambda: not engine.busy))
    assert slow.tokens < 200
    engine.close()


def test_an_error_reaches_its_asker_and_the_thread_lives(answerer: Answerer) -> None:
    async def main() -> None:
        async with engine_of(answerer) as engine:
            too_long = [{"role": "user", "content": "word " * 2000}]
            with pytest.raises(TuneloopError, match="TL-SERVE-CONTEXT"):
                await collect(engine.submit(too_long, max_new_tokens=1))

            def break_(*_: Any) -> None:
                raise ValueError("a kernel is missing")

            hook = answerer.model.register_forward_pre_hook(break_)
            with pytest.raises(ServeError) as caught:
                await collect(engine.submit(CHAT, max_new_tokens=1))
            hook.remove()
            assert caught.value.code == "TL-SERVE-FAILED"
            assert "a kernel is missing" in str(caught.value)
            assert (await collect(engine.submit(CHAT, max_new_tokens=2)))[1].tokens == 2

    asyncio.run(main())


def test_close_ends_the_thread_and_all_requests(answerer: Answerer, slow: Slow) -> None:
    async def main() -> None:
        engine = TorchEngine(answerer)
        tasks = [asyncio.ensure_future(collect(engine.submit(CHAT, **LONG))) for _ in range(3)]
        await until(lambda: slow.tokens >= 2)
        await asyncio.to_thread(engine.close)
        for task in tasks:
            with pytest.raises(ServeError, match="TL-SERVE-CLOSING"):
                await task
        with pytest.raises(ServeError, match="TL-SERVE-CLOSING"):
            engine.submit(CHAT, max_new_tokens=1)
        assert not engine.open
        engine.close()

    asyncio.run(main())
    assert not [t for t in threading.enumerate() if t.name == "tuneloop-engine"]


def test_counting_does_not_wait_for_an_answer(answerer: Answerer, slow: Slow) -> None:
    async def main() -> None:
        async with engine_of(answerer) as engine:
            items = engine.submit(CHAT, **LONG)
            await until(lambda: engine.busy)
            counts = await asyncio.gather(*(engine.count(CHAT) for _ in range(8)))
            assert len(set(counts)) == 1
            assert engine.busy
            await items.aclose()

    asyncio.run(main())


def test_seeds_repeat_and_requests_do_not_disturb_each_other(answerer: Answerer) -> None:
    async def main() -> None:
        async with engine_of(answerer) as engine:
            how = {"max_new_tokens": 16, "temperature": 1.0, "top_p": 0.9}
            texts = [(await collect(engine.submit(CHAT, seed=seed, **how)))[1].text for seed in (7, 8, 7)]
            assert texts[0] == texts[2] != texts[1]

    asyncio.run(main())
