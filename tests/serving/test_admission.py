"""The steps of admission: the key and the queue; what a later step can do; and in which order they are asked."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.requests import Request

from tuneloop.base.errors import ServeError
from tuneloop.base.records import Reply
from tuneloop.inference.generate import Answerer
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import ServePart
from tuneloop.serving.admission import Admission, Key, Question, Queue, Submit, admission_steps, through
from tuneloop.serving.api import create_app
from tuneloop.serving.engine import AnswerStream, Engine
from tuneloop.serving.torch_engine import TorchEngine

CHAT = [{"role": "user", "content": "Who are you?"}]
BODY = {"model": "m", "messages": CHAT, "max_tokens": 4}
CHATS = "/v1/chat/completions"


class Pieces:
    """An answer that is there already."""

    def __init__(self, *pieces: str) -> None:
        text = "".join(pieces)
        self.left: list[str | Reply] = [*pieces, Reply(text, 3, len(pieces), "stop", 0.0)]
        self.closed = False

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> str | Reply:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop(0)

    async def aclose(self) -> None:
        self.closed = True


class Echo:
    """An engine without a model: it fulfils the protocol, and the server is to know no more of it."""

    context, labels, open, pending, retry_after = 100, (), True, 0, 7

    def __init__(self) -> None:
        self.questions: list[dict[str, Any]] = []
        self.streams: list[Pieces] = []

    async def count(self, chat: Any) -> int:
        return 3

    def submit(self, chat: Any, **options: Any) -> Pieces:
        self.questions.append(options)
        self.streams.append(Pieces("a", "b"))
        return self.streams[-1]

    def close(self, grace: float = 0.0) -> None:
        self.open = False


def app_of(engine: Engine, *steps: Admission) -> FastAPI:
    return create_app(engine, model_name="m", admission=steps, max_new_tokens=11)


class Log(Admission):
    """Writes down when it is asked."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    async def enter(self, request: Request) -> None:
        self.log.append(f"{self.name} enters")

    async def answer(self, question: Question, submit: Submit) -> AnswerStream:
        self.log.append(f"{self.name} answers")
        stream = await submit(question)
        self.log.append(f"{self.name} answered")
        return stream


def test_the_first_step_is_the_outermost() -> None:
    log: list[str] = []
    engine = Echo()
    with TestClient(app_of(engine, Log("one", log), Log("two", log))) as client:
        assert client.get("/healthz").status_code == 200
        assert log == []
        assert client.get("/v1/models").status_code == 200
        assert log == ["one enters", "two enters"]
        log.clear()
        reply = client.post(CHATS, json={**BODY, "temperature": 0.5, "seed": 2, "stop": "x", "top_p": 0.5})
        assert reply.json()["choices"][0]["message"]["content"] == "ab"
        asks = ["one answers", "two answers", "two answered", "one answered"]
        assert log == ["one enters", "two enters", *asks]
        assert client.post(CHATS, json={k: v for k, v in BODY.items() if k != "max_tokens"}).status_code == 200
    plain = {"max_new_tokens": 11, "temperature": 0.0, "top_p": 1.0, "seed": None, "stop": ()}
    assert engine.questions == [
        {"max_new_tokens": 4, "temperature": 0.5, "top_p": 0.5, "seed": 2, "stop": ("x",)}, plain,
    ]  # fmt: skip
    assert not engine.open


class Refuse(Admission):
    """Turns everybody away, before the body or once the question is known."""

    def __init__(self, early: bool) -> None:
        self.early = early

    async def enter(self, request: Request) -> None:
        if self.early:
            raise ServeError("TL-SERVE-FULL", status=429, waiting=0, seconds=12)

    async def answer(self, question: Question, submit: Submit) -> AnswerStream:
        raise ServeError("TL-SERVE-FULL", status=429, waiting=0, seconds=12)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_a_step_refuses_with_its_status_and_when_to_come_back(early: bool, stream: bool) -> None:
    log: list[str] = []
    with TestClient(app_of(Echo(), Refuse(early), Log("next", log))) as client:
        reply = client.post(CHATS, json={**BODY, "stream": stream})
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "12")
        assert reply.json()["error"]["type"] == "rate_limit_error"
        broken = client.post(CHATS, content=b"{")
        assert broken.status_code == (429 if early else 400), "the body is read after the steps have been entered"
    assert log == ([] if early else ["next enters"] * 2)


class Other(Admission):
    """Gives an answer of its own, as a cache would, to one question; looks at those of the engine, as a guard would."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def answer(self, question: Question, submit: Submit) -> AnswerStream:
        if question.seed == 1:
            return Pieces("from ", "the ", "cache")
        return Watched(await submit(question), self.seen)


class Watched:
    def __init__(self, inner: AnswerStream, seen: list[str]) -> None:
        self.inner, self.seen = inner, seen

    def __aiter__(self) -> Watched:
        return self

    async def __anext__(self) -> str | Reply:
        piece = await anext(self.inner)
        if isinstance(piece, str):
            self.seen.append(piece)
        return piece

    async def aclose(self) -> None:
        await self.inner.aclose()


@pytest.mark.parametrize("stream", [True, False])
def test_a_step_wraps_the_answer_or_gives_another(stream: bool) -> None:
    step, engine = Other(), Echo()
    with TestClient(app_of(engine, step)) as client:
        cached, asked = (client.post(CHATS, json={**BODY, "seed": seed, "stream": stream}).text for seed in (1, 2))
    assert "cache" in cached
    assert "cache" not in asked
    assert step.seen == ["a", "b"]
    assert [s.closed for s in engine.streams] == [True]


def test_the_key_comes_first_and_the_queue_last() -> None:
    engine = Echo()
    assert [type(step) for step in admission_steps(ServePart(), engine, "k")] == [Key, Queue]
    assert [type(step) for step in admission_steps(ServePart(), engine, None)] == [Queue]


# The queue, before the engine of this process


@pytest.fixture(scope="module")
def answerer(tiny_model: Path) -> Answerer:
    answerer = Answerer(load_model(tiny_model), load_tokenizer(tiny_model))
    answerer.stops = frozenset()  # a random model might end early; these tests need answers of known length
    return answerer


@pytest.fixture
def slow(answerer: Answerer) -> Iterator[None]:
    hook = answerer.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    yield
    hook.remove()


@asynccontextmanager
async def queue_of(answerer: Answerer, length: int) -> AsyncIterator[tuple[TorchEngine, Submit]]:
    engine = TorchEngine(answerer)
    try:
        yield engine, through([Queue(engine, length)], engine)
    finally:
        await asyncio.to_thread(engine.close)


def question(tokens: int) -> Question:
    return Question(cast(Request, None), CHAT, 3, tokens, temperature=1.0, seed=1)


async def reply_of(stream: AnswerStream) -> Reply:
    async for piece in stream:
        if isinstance(piece, Reply):
            return piece
    raise AssertionError("no reply")


async def until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        await asyncio.sleep(0.005)


def test_a_full_queue_refuses_at_once(answerer: Answerer, slow: None) -> None:
    async def main() -> None:
        async with queue_of(answerer, 2) as (engine, submit):
            running = await submit(question(400))
            await until(lambda: engine.busy)
            waiting = [await submit(question(1)) for _ in range(2)]
            with pytest.raises(ServeError) as caught:
                await submit(question(1))
            assert caught.value.code == "TL-SERVE-FULL"
            assert caught.value.facts["seconds"] >= 1
            assert caught.value.facts["waiting"] == 2
            # A place is free again as soon as somebody who waits gives up.
            await waiting[0].aclose()
            assert engine.waiting == 1
            last = await submit(question(1))
            await running.aclose()
            for stream in (waiting[1], last):
                assert (await reply_of(stream)).tokens == 1

    asyncio.run(main())


def test_a_queue_of_none_still_serves(answerer: Answerer, slow: None) -> None:
    async def main() -> None:
        async with queue_of(answerer, 0) as (_, submit):
            stream = await submit(question(5))
            with pytest.raises(ServeError, match="TL-SERVE-FULL"):
                await submit(question(1))
            assert (await reply_of(stream)).tokens == 5

    asyncio.run(main())


def test_many_at_once_never_pass_the_bound(answerer: Answerer, slow: None) -> None:
    """However the engine's thread takes them: of what comes while an answer is written, `length` wait."""

    async def main() -> None:
        async with queue_of(answerer, 3) as (engine, submit):
            streams = await asyncio.gather(*(submit(question(100)) for _ in range(9)), return_exceptions=True)
            refused = [s for s in streams if isinstance(s, BaseException)]
            assert len(refused) == 5
            assert {getattr(error, "code", "") for error in refused} == {"TL-SERVE-FULL"}
            assert engine.pending == 4

    asyncio.run(main())
    assert not [t for t in threading.enumerate() if t.name == "tuneloop-engine"]


def test_a_server_that_ends_says_so_though_its_queue_is_full(answerer: Answerer, slow: None) -> None:
    async def main() -> None:
        async with queue_of(answerer, 0) as (engine, submit):
            await submit(question(400))
            await until(lambda: engine.busy)
            closing = asyncio.ensure_future(asyncio.to_thread(engine.close, 1.0))
            await until(lambda: not engine.open)
            with pytest.raises(ServeError, match="TL-SERVE-CLOSING"):
                await submit(question(1))
            await closing

    asyncio.run(main())
