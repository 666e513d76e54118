"""The steps of admission: the key and the queue; what a later step can do; and in which order they are asked."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient
from starlette.requests import Request

from tests.serving.scripted import CHAT, NAME, ScriptedEngine, ScriptedStream, app_of
from tuneloop.base.errors import ServeError
from tuneloop.base.records import Sampling
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.access.access import Access
from tuneloop.serving.access.fair_queue import Queue
from tuneloop.serving.access.limits import KeyLimits
from tuneloop.serving.admission import Admission, Question, Submit, through
from tuneloop.serving.application import admission_steps
from tuneloop.serving.engine import AnswerStream, Piece, Query

BODY = {"model": NAME, "messages": CHAT, "max_tokens": 4}
CHATS = "/v1/chat/completions"


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
    engine = ScriptedEngine()
    with TestClient(app_of(engine, steps=[Log("one", log), Log("two", log)])) as client:
        for path in ("/healthz", "/health", "/ready"):
            assert client.get(path).status_code == 200
        assert log == []
        assert client.get("/v1/models").status_code == 200
        assert log == ["one enters", "two enters"]
        log.clear()
        reply = client.post(CHATS, json={**BODY, "temperature": 0.5, "seed": 2, "stop": "x", "top_p": 0.5})
        assert reply.json()["choices"][0]["message"]["content"] == "Hi there! 🪨"
        assert log == ["one enters", "two enters", "one answers", "two answers", "two answered", "one answered"]
        assert client.post(CHATS, json={k: v for k, v in BODY.items() if k != "max_tokens"}).status_code == 200
    one, two = engine.queries
    assert one == Query(
        "chat", NAME, chat=CHAT, max_new_tokens=4, sampling=Sampling(temperature=0.5, top_p=0.5, seed=2), stop=("x",)
    )
    assert two == Query("chat", NAME, chat=CHAT)
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
    with TestClient(app_of(ScriptedEngine(), steps=[Refuse(early), Log("next", log)])) as client:
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
        assert question.request.url.path == CHATS
        if question.query.sampling.seed == 1:
            pieces = [Piece(text="from "), Piece(text="the cache"), Piece(finish="stop", tokens=2)]
            return ScriptedStream(ScriptedEngine(), iter(pieces))
        return Watched(await submit(question), self.seen)


class Watched:
    def __init__(self, inner: AnswerStream, seen: list[str]) -> None:
        self.inner, self.seen = inner, seen

    @property
    def prompt_tokens(self) -> int:
        return self.inner.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        return self.inner.cached_tokens

    def __aiter__(self) -> Watched:
        return self

    async def __anext__(self) -> Piece:
        piece = await anext(self.inner)
        self.seen.append(piece.text)
        return piece

    async def aclose(self) -> None:
        await self.inner.aclose()


@pytest.mark.parametrize("stream", [True, False])
def test_a_step_wraps_the_answer_or_gives_another(stream: bool) -> None:
    step, engine = Other(), ScriptedEngine()
    with TestClient(app_of(engine, steps=[step])) as client:
        cached, asked = (client.post(CHATS, json={**BODY, "seed": seed, "stream": stream}).text for seed in (1, 2))
    assert "the cache" in cached
    assert "the cache" not in asked
    assert step.seen == ["Hi", " there", "! 🪨", ""]
    assert [s.closed for s in engine.streams] == [True]


def test_the_key_comes_first_and_the_queue_last() -> None:
    engine = ScriptedEngine()
    for key in ("k", None):
        assert [type(step) for step in admission_steps(ServePart(), engine, key)] == [Access, KeyLimits, Queue]


# The queue


def question() -> Question:
    return Question(cast(Request, None), Query("chat", NAME, chat=CHAT))


def queue_of(engine: Any, length: int) -> Submit:
    return through([Queue(engine, length)], engine)


def test_a_full_queue_refuses_at_once() -> None:
    async def main() -> None:
        engine = ScriptedEngine(capacity=2)
        submit = queue_of(engine, 2)
        streams = [await submit(question()) for _ in range(2)]
        waiting = [asyncio.ensure_future(submit(question())) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ServeError) as caught:
            await submit(question())
        assert caught.value.code == "TL-SERVE-FULL"
        assert (caught.value.facts["seconds"], caught.value.facts["waiting"], caught.value.facts["status"]) == (
            7,
            2,
            503,
        )
        # A place is free again as soon as somebody gives up.
        waiting[0].cancel()
        await asyncio.sleep(0)
        waiting.append(asyncio.ensure_future(submit(question())))
        await streams[0].aclose()
        await streams[1].aclose()
        for turn in waiting[1:]:
            assert [piece.text async for piece in await turn] == ["Hi", " there", "! 🪨", ""]
        assert engine.pending == 0
        assert engine.most == 2

    asyncio.run(main())


def test_a_queue_of_none_still_serves_as_many_as_are_answered_at_once() -> None:
    async def main() -> None:
        submit = queue_of(ScriptedEngine(capacity=2), 0)
        streams = [await submit(question()) for _ in range(2)]
        with pytest.raises(ServeError, match="TL-SERVE-FULL"):
            await submit(question())
        assert [piece.finish async for piece in streams[0]][-1] == "stop"
        await submit(question())

    asyncio.run(main())


class Slow(ScriptedEngine):
    """Takes its time to accept a query, which counts from then on."""

    async def submit(self, query: Query) -> ScriptedStream:
        await asyncio.sleep(0.05)
        return await super().submit(query)


@pytest.mark.parametrize("kind", [ScriptedEngine, Slow])
def test_many_at_once_never_pass_the_bound(kind: type[ScriptedEngine]) -> None:
    """However long an engine takes to accept them: of nine that come at once, those of the bound are let in."""

    async def main() -> None:
        engine = kind(capacity=1)
        submit = queue_of(engine, 3)

        async def answered() -> int:
            return len([piece async for piece in await submit(question())])

        outcomes = await asyncio.gather(*(answered() for _ in range(9)), return_exceptions=True)
        refused = [one for one in outcomes if isinstance(one, BaseException)]
        assert len(refused) == 5
        assert {getattr(error, "code", "") for error in refused} == {"TL-SERVE-FULL"}
        assert [one for one in outcomes if not isinstance(one, BaseException)] == [4] * 4
        assert engine.most == 1

    asyncio.run(main())


def test_a_server_that_ends_says_so_though_its_queue_is_full() -> None:
    async def main() -> None:
        engine = ScriptedEngine(capacity=1)
        submit = queue_of(engine, 0)
        await submit(question())
        engine.close()
        with pytest.raises(ServeError, match="TL-SERVE-CLOSING"):
            await submit(question())

    asyncio.run(main())
