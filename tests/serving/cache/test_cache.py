"""The cache as a step of a server: what is answered from it, what is not, and that nobody gets another one's answer."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient
from redis import Redis
from starlette.requests import Request

from tests.redis_server import RedisServer, redis_server
from tests.serving.scripted import CHAT, NAME, ScriptedEngine, app_of
from tuneloop.base.errors import ServeError
from tuneloop.base.records import Sampling
from tuneloop.recipe.serve import CachePart, ServePart
from tuneloop.serving.admission import Admission, Caller, Question, Submit, through
from tuneloop.serving.application import admission_steps
from tuneloop.serving.cache import answer_store
from tuneloop.serving.cache import redis as redis_module
from tuneloop.serving.cache import sqlite as sqlite_module
from tuneloop.serving.cache.cache import Cache, cache_steps, forget
from tuneloop.serving.cache.sqlite import SqliteAnswers
from tuneloop.serving.engine import AnswerStream, Piece, Query

CHATS = "/v1/chat/completions"
BODY = {"model": NAME, "messages": CHAT}
BACKENDS = ("memory", "sqlite", "redis")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=BACKENDS)
def settings(request: pytest.FixtureRequest) -> ServePart:
    """A cache of each kind, empty."""
    url = request.getfixturevalue("redis").url if request.param == "redis" else None
    if url:
        with Redis.from_url(url) as client:
            client.flushall()
    return ServePart(redis=url, cache=CachePart(backend=request.param))


def app(engine: Any, settings: ServePart, workspace: Path) -> Any:
    return app_of(engine, steps=admission_steps(settings, engine, None, workspace))


def cache_of(settings: ServePart, engine: Any, workspace: Path) -> Cache:
    (step,) = cache_steps(settings, engine, workspace)
    assert isinstance(step, Cache)
    return step


def question(
    text: str = "Hi", *, tenant: str = "", user: str = "", header: str = "", model: str = NAME, **more: Any
) -> Question:
    state = SimpleNamespace(caller=Caller(tenant, tenant, frozenset(), tenant))
    request = SimpleNamespace(state=state, headers={"cache-control": header} if header else {})
    chat = [{"role": "user", "content": text}]
    return Question(cast(Request, request), Query("chat", model, chat=chat, user=user, **more))


async def text_of(stream: AnswerStream) -> str:
    try:
        return "".join([piece.text async for piece in stream])
    finally:
        await stream.aclose()


def content_of(events: str) -> str:
    chunks = [json.loads(line.removeprefix("data: ")) for line in events.split("\n\n") if line.startswith("data: {")]
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])


# A server with a cache


def test_the_second_answer_comes_from_the_cache_streamed_or_not(settings: ServePart, tmp_path: Path) -> None:
    engine = ScriptedEngine()
    with TestClient(app(engine, settings, tmp_path)) as client:
        first = client.post(CHATS, json=BODY).json()
        second = client.post(CHATS, json=BODY).json()
        assert len(engine.queries) == 1
        assert second["choices"] == first["choices"]
        assert second["id"] != first["id"]
        counts = ("prompt_tokens", "completion_tokens", "total_tokens")
        assert [second["usage"][c] for c in counts] == [first["usage"][c] for c in counts] == [7, 3, 10]
        assert second["usage"]["prompt_tokens_details"] == {"cached_tokens": 7}
        streamed = client.post(CHATS, json={**BODY, "stream": True, "stream_options": {"include_usage": True}})
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert content_of(streamed.text) == "Hi there! 🪨"
        assert '"finish_reason":"stop"' in streamed.text
        assert '"completion_tokens":3' in streamed.text
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert len(engine.queries) == 1
        metrics = client.get("/metrics").text
    for line in ("hits_total 2.0", "misses_total 1.0", "stored_total 1.0", "errors_total 0.0", "answers 1.0"):
        assert f"tuneloop_cache_{line}" in metrics


def test_what_was_streamed_is_given_whole(settings: ServePart, tmp_path: Path) -> None:
    engine = ScriptedEngine()
    with TestClient(app(engine, settings, tmp_path)) as client:
        client.post(CHATS, json={**BODY, "stream": True})
        assert client.post(CHATS, json=BODY).json()["choices"][0]["message"]["content"] == "Hi there! 🪨"
    assert len(engine.queries) == 1


KINDS: list[dict[str, Any]] = [
    {"temperature": 0.5, "seed": 3}, {"n": 3, "seed": 4, "temperature": 1.0}, {"logprobs": True, "top_logprobs": 3},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "tool_choice": "required"},
    {"response_format": {"type": "json_object"}}, {"max_tokens": 2}, {"chat_template_kwargs": {"enable_thinking": True}},
]  # fmt: skip


def test_every_kind_of_answer_comes_back_as_it_was(settings: ServePart, tmp_path: Path) -> None:
    engine = ScriptedEngine()
    with TestClient(app(engine, settings, tmp_path)) as client:
        for number, more in enumerate(KINDS, 1):
            first, second = (client.post(CHATS, json=BODY | more).json() for _ in range(2))
            assert first["choices"] == second["choices"]
            assert len(engine.queries) == number


def test_texts_vectors_and_labels_are_cached_too(settings: ServePart, tmp_path: Path) -> None:
    engine = ScriptedEngine()
    with TestClient(app(engine, settings, tmp_path)) as client:
        for path, body, part in (
            ("/v1/completions", {"model": NAME, "prompt": ["a", "b"], "echo": True, "logprobs": 2}, "choices"),
            ("/v1/embeddings", {"model": "encoder", "input": ["a", "b"]}, "data"),
            ("/v1/classify", {"model": "sorter", "input": "Fine."}, "scores"),
        ):
            before = len(engine.queries)
            first, second = (client.post(path, json=body).json() for _ in range(2))
            assert first[part] == second[part]
            assert len(engine.queries) - before == (1 if part == "scores" else 2)


def test_what_is_drawn_without_a_seed_is_not_cached(settings: ServePart, tmp_path: Path) -> None:
    engine = ScriptedEngine()
    with TestClient(app(engine, settings, tmp_path)) as client:
        for _ in range(2):
            client.post(CHATS, json={**BODY, "temperature": 0.7})
        assert len(engine.queries) == 2
        assert "tuneloop_cache_bypassed_total 2.0" in client.get("/metrics").text


def test_a_request_may_leave_the_cache_out(settings: ServePart, tmp_path: Path) -> None:
    engine = ScriptedEngine()
    with TestClient(app(engine, settings, tmp_path)) as client:

        def computed(header: str) -> bool:
            before = len(engine.queries)
            assert client.post(CHATS, json=BODY, headers={"Cache-Control": header} if header else {}).is_success
            return len(engine.queries) > before

        assert [computed(h) for h in ("no-store", "", "", "no-store", "no-cache", "")] == [
            True, True, False, True, True, False,
        ]  # fmt: skip


def test_without_a_cache_everything_is_computed(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    with TestClient(app(engine, ServePart(), tmp_path)) as client:
        for _ in range(2):
            client.post(CHATS, json=BODY)
    assert len(engine.queries) == 2
    assert list(tmp_path.iterdir()) == []


# What changes an answer is in its key


def test_nobody_is_answered_with_what_another_tenant_model_or_request_has(settings: ServePart, tmp_path: Path) -> None:
    async def main() -> None:
        engine = ScriptedEngine()
        cache = cache_of(settings, engine, tmp_path)
        submit = through([cache], engine)
        tool = {"type": "function", "function": {"name": "f", "parameters": {"a": {}, "b": {}}}}
        turned = {"type": "function", "function": {"name": "f", "parameters": {"b": {}, "a": {}}}}
        others = [
            question(), question("hi"), question(tenant="shop"), question(tenant="bank"), question(model="sorter"),
            question(max_new_tokens=1000), question(sampling=Sampling(0.5, seed=1)), question(sampling=Sampling(0.5, seed=2)),
            question(sampling=Sampling(seed=1)), question(sampling=Sampling(logit_bias=((1, 2.0),))), question(n=2),
            question(stop=("x",)), question(logprobs=0), question(logprobs=1), question(schema={}), question(tools=(tool,)),
            question(tools=(turned,)), question(tools=(tool,), parallel_tool_calls=False), question(thinking=False),
            question(schema={"type": "object"}), question(sampling=Sampling(repetition_penalty=1.1)),
        ]  # fmt: skip
        for number, one in enumerate(others, 1):
            await text_of(await submit(one))
            assert len(engine.queries) == number
        for one in others:
            await text_of(await submit(one))
        assert len(engine.queries) == len(others)
        engine.weights = "2"
        await text_of(await submit(question()))
        assert len(engine.queries) == len(others) + 1, "another adapter behind the same name"
        engine.weights = ""
        await text_of(await submit(question()))
        assert len(engine.queries) == len(others) + 2, "an engine that cannot tell what it serves"
        engine.weights = "1"
        again = Cache(cache._store, engine, settings.cache, policy="2")
        await text_of(await through([again], engine)(question()))
        assert len(engine.queries) == len(others) + 3, "another safety policy"
        await cache.close()

    asyncio.run(main())


def test_who_asks_within_a_tenant_does_not_matter(settings: ServePart, tmp_path: Path) -> None:
    async def main() -> None:
        engine = ScriptedEngine()
        cache = cache_of(settings, engine, tmp_path)
        submit = through([cache], engine)
        for user in ("ann", "bob", ""):
            assert await text_of(await submit(question(tenant="shop", user=user))) == "Hi there! 🪨"
        assert len(engine.queries) == 1
        await cache.close()

    asyncio.run(main())


# Equal questions at the same time


def test_equal_questions_at_once_are_computed_once_and_streamed_to_all(settings: ServePart, tmp_path: Path) -> None:
    async def main() -> None:
        engine = ScriptedEngine()
        engine.seconds = 0.01
        cache = cache_of(settings, engine, tmp_path)
        submit = through([cache], engine)
        streams = await asyncio.gather(*(submit(question()) for _ in range(50)))
        assert set(await asyncio.gather(*map(text_of, streams))) == {"Hi there! 🪨"}
        assert len(engine.queries) == 1
        assert cache.gauges()["cache_shared_total"] == 49
        # One that comes in the middle reads it from the beginning, before it has ended.
        first = await submit(question("late"))
        assert (await anext(first)).text == "Hi"
        second = await submit(question("late"))
        assert (await anext(second)).text == "Hi"
        assert len(engine.running) == 1
        assert [await text_of(stream) for stream in (second, first)] == [" there! 🪨"] * 2
        assert len(engine.queries) == 2
        await cache.close()

    asyncio.run(main())


def test_who_hangs_up_ends_nobody_elses_answer_and_the_last_one_ends_it(tmp_path: Path) -> None:
    async def main() -> None:
        engine = ScriptedEngine()
        engine.seconds = 0.02
        cache = cache_of(ServePart(cache=CachePart(backend="memory")), engine, tmp_path)
        submit = through([cache], engine)
        first, second = await submit(question()), await submit(question())
        await anext(first)
        await first.aclose()
        assert await text_of(second) == "Hi there! 🪨"
        third, fourth = await submit(question("x")), await submit(question("x"))
        await anext(third)
        await asyncio.gather(third.aclose(), fourth.aclose())
        fifth = await submit(question("x"))  # it does not wait for what is being given up
        assert await text_of(fifth) == "Hi there! 🪨"
        assert len(engine.queries) == 3
        assert [one.closed for one in engine.streams] == [True] * 3
        assert not engine.running
        # One who hangs up before the engine has taken it.
        waiting = asyncio.ensure_future(through([cache, Slow(60)], engine)(question("y")))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0.1)
        assert len(engine.queries) == 3
        assert cache._flights == {}

    asyncio.run(main())


class Slow(Admission):
    def __init__(self, seconds: float = 0.05) -> None:
        self.seconds = seconds

    async def answer(self, question: Question, submit: Submit) -> AnswerStream:
        await asyncio.sleep(self.seconds)
        return await submit(question)


def test_a_refusal_reaches_all_who_wait_and_is_not_stored(settings: ServePart, tmp_path: Path) -> None:
    async def main() -> None:
        engine = ScriptedEngine()
        engine.refusal = ServeError("TL-SERVE-FULL", status=503, waiting=1, seconds=3)
        cache = cache_of(settings, engine, tmp_path)
        submit = through([cache, Slow()], engine)
        refused = await asyncio.gather(*(submit(question()) for _ in range(5)), return_exceptions=True)
        assert [getattr(one, "code", "") for one in refused] == ["TL-SERVE-FULL"] * 5
        engine.refusal = None
        assert await text_of(await submit(question())) == "Hi there! 🪨"
        await cache.close()

    asyncio.run(main())


def test_an_answer_that_breaks_off_breaks_off_for_all_and_is_not_stored(settings: ServePart, tmp_path: Path) -> None:
    async def main() -> None:
        engine = ScriptedEngine()
        engine.failure = ServeError("TL-SERVE-FAILED", error="x")
        cache = cache_of(settings, engine, tmp_path)
        submit = through([cache], engine)
        streams = [await submit(question()) for _ in range(3)]
        for stream in streams:
            assert [(await anext(stream)).text for _ in range(2)] == ["Hi", " there"]
            with pytest.raises(ServeError, match="TL-SERVE-FAILED"):
                await anext(stream)
        engine.failure = None
        assert await text_of(await submit(question())) == "Hi there! 🪨"
        assert len(engine.queries) == 2
        await cache.close()

    asyncio.run(main())


@pytest.mark.parametrize("pieces", [[Piece(text="Hi")], [Piece(text="Hi", finish="content_filter")]])
def test_what_has_no_end_of_its_own_is_not_stored(pieces: list[Piece], settings: ServePart, tmp_path: Path) -> None:
    async def main() -> None:
        engine = ScriptedEngine(lambda query: iter(pieces))
        cache = cache_of(settings, engine, tmp_path)
        for _ in range(2):
            await text_of(await through([cache], engine)(question()))
        assert len(engine.queries) == 2
        await cache.close()

    asyncio.run(main())


# Time, size, failures


def test_an_answer_has_its_time(settings: ServePart, tmp_path: Path) -> None:
    async def main() -> None:
        engine = ScriptedEngine()
        brief = settings.model_copy(update={"cache": settings.cache.model_copy(update={"ttl": 0.5})})
        cache = cache_of(brief, engine, tmp_path)
        submit = through([cache], engine)
        for _ in range(2):
            await text_of(await submit(question()))
        assert len(engine.queries) == 1
        await asyncio.sleep(0.6)
        await text_of(await submit(question()))
        assert len(engine.queries) == 2
        await cache.close()

    asyncio.run(main())


def test_redis_may_go_and_come_back(tmp_path: Path) -> None:
    async def main() -> None:
        with redis_server(tmp_path) as server:
            engine = ScriptedEngine()
            cache = cache_of(ServePart(redis=server.url, cache=CachePart(backend="redis")), engine, tmp_path)
            submit = through([cache], engine)

            async def computed() -> bool:
                before = len(engine.queries)
                assert await text_of(await submit(question())) == "Hi there! 🪨"
                while cache._flights:
                    await asyncio.sleep(0.01)
                return len(engine.queries) > before

            assert [await computed() for _ in range(2)] == [True, False]
            server.stop()
            assert [await computed() for _ in range(3)] == [True] * 3
            assert cache.gauges()["cache_errors_total"] == 1, "it is left alone for a second"
            server.start()
            cache._rests_until = 0.0
            assert [await computed() for _ in range(2)] == [True, False]
            await cache.close()

    asyncio.run(main())


@pytest.mark.parametrize("url", [None, "http://127.0.0.1"])
def test_an_address_that_is_none_is_told_at_the_start(url: str | None, tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="TL-SERVE-CACHE"):
        cache_steps(ServePart(redis=url, cache=CachePart(backend="redis")), ScriptedEngine(), tmp_path)


def test_a_file_that_cannot_be_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(ServeError, match="TL-SERVE-CACHE"):
        cache_steps(ServePart(cache=CachePart(backend="sqlite")), ScriptedEngine(), tmp_path)


class _FullDisk:
    """A connection to SQLite whose next commit fails, as it does on a full disk."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection, self.failed = connection, False

    def execute(self, statement: str, *arguments: Any) -> Any:
        if statement == "COMMIT" and not self.failed:
            self.failed = True
            raise sqlite3.OperationalError("database or disk is full")
        return self._connection.execute(statement, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def test_a_full_disk_leaves_no_lock_behind(tmp_path: Path) -> None:
    async def main() -> None:
        store = SqliteAnswers(tmp_path / "answers.db", 1 << 20)
        store._connection = cast(sqlite3.Connection, _FullDisk(store._connection))
        with pytest.raises(sqlite3.OperationalError):
            await store.put("t:1", b"a", (), 60, 0.0)
        with sqlite3.connect(tmp_path / "answers.db", timeout=1, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
        other.close()
        await store.put("t:1", b"a", (), 60, 0.0)
        assert await store.get("t:1", ()) == b"a"
        await store.close()

    asyncio.run(main())


def test_nobody_waits_long_for_a_file_that_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "BUSY_SECONDS", 30.0)

    async def main() -> None:
        engine = ScriptedEngine(capacity=8)
        cache = cache_of(ServePart(cache=CachePart(backend="sqlite")), engine, tmp_path)
        other = sqlite3.connect(tmp_path / "cache" / "answers.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        submit = through([cache], engine)
        async with asyncio.timeout(10):
            for text in "abc":  # the first one's answer is being stored when the next is asked
                assert await text_of(await submit(question(text))) == "Hi there! 🪨"
        assert cache.gauges()["cache_errors_total"] >= 1
        other.execute("ROLLBACK")
        other.close()
        await cache.close()

    asyncio.run(main())


def test_who_asks_what_a_batch_asks_does_not_wait_as_long_as_it(tmp_path: Path) -> None:
    async def main() -> None:
        engine = ScriptedEngine()
        cache = cache_of(ServePart(cache=CachePart(backend="memory")), engine, tmp_path)
        waits = asyncio.Event()

        async def queued(question: Question, submit: Submit) -> AnswerStream:
            if getattr(question.request.state, "behind", False):
                await waits.wait()
            return await submit(question)

        queue = Admission()
        queue.answer = queued  # type: ignore[method-assign]
        submit = through([cache, queue], engine)
        line = question()
        line.request.state.behind = True
        asked = asyncio.ensure_future(submit(line))
        while not cache._flights:
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            assert await text_of(await submit(question())) == "Hi there! 🪨"
        waits.set()
        assert await text_of(await asked) == "Hi there! 🪨"
        await cache.close()

    asyncio.run(main())


# Forgetting


def test_who_is_forgotten_has_no_answer_left(
    settings: ServePart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one user everywhere, of one tenant, of one user of a tenant; by the server and by another process."""
    for module in (answer_store, redis_module):
        monkeypatch.setattr(module, "MARGIN", 0.0)
    all_of_them = [(tenant, user) for tenant in ("shop", "bank") for user in ("ann", "bob")]

    async def main() -> None:
        engine = ScriptedEngine()
        cache = cache_of(settings, engine, tmp_path)

        async def computed() -> list[tuple[str, str]]:
            out = []
            for tenant, user in all_of_them:
                before = len(engine.queries)
                await answered(cache, engine, question(f"I am {user}", tenant=tenant, user=user))
                out += [(tenant, user)] if len(engine.queries) > before else []
            return out

        assert await computed() == all_of_them
        for gone, those in (
            ({"user": "ann"}, [("shop", "ann"), ("bank", "ann")]),
            ({"tenant": "bank"}, [("bank", "ann"), ("bank", "bob")]),
            ({"tenant": "shop", "user": "bob"}, [("shop", "bob")]),
        ):
            assert await cache.forget(**gone) == len(those)
            assert await computed() == those
            assert await computed() == []
            await forget(settings, tmp_path, **gone)
            assert await computed() == those
        with pytest.raises(ValueError, match="whom"):
            await cache.forget()
        await cache.close()

    asyncio.run(main())


async def answered(cache: Cache, engine: Any, one: Question) -> str:
    """The text of an answer, once it is stored."""
    text = await text_of(await through([cache], engine)(one))
    while cache._flights:
        await asyncio.sleep(0.001)
    return text


PLANTED = "Ann lives at 12 Elm Row"


def everything(settings: ServePart, folder: Path) -> bytes:
    """All bytes that a cache has on the disk or in Redis."""
    octets = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    if settings.redis:
        with Redis.from_url(settings.redis) as client:
            for key in client.scan_iter():
                octets += key + (client.get(key) if client.type(key) == b"string" else client.dump(key))
    return octets


def test_no_byte_is_left_of_who_is_forgotten(settings: ServePart, tmp_path: Path) -> None:
    async def main() -> None:
        engine = ScriptedEngine(lambda query: iter([Piece(text=PLANTED * 400, finish="stop", tokens=1)]))
        cache = cache_of(settings, engine, tmp_path)
        for number in range(20):
            await answered(cache, engine, question(f"{PLANTED} {number}", tenant="shop", user="ann-4711"))
        if settings.cache.backend != "memory":
            assert PLANTED.encode() in everything(settings, tmp_path)
        assert await forget(settings, tmp_path, user="ann-4711") == (0 if settings.cache.backend == "memory" else 20)
        left = everything(settings, tmp_path)
        assert PLANTED.encode() not in left
        assert b"ann-4711" not in left
        await answered(cache, engine, question(f"{PLANTED} 0", tenant="shop", user="ann-4711"))
        assert len(engine.queries) == 21
        await cache.close()

    asyncio.run(main())


def test_what_is_under_way_when_somebody_is_forgotten_is_not_stored(settings: ServePart, tmp_path: Path) -> None:
    async def main() -> None:
        engine = ScriptedEngine()
        cache = cache_of(settings, engine, tmp_path)
        stream = await through([cache], engine)(question(user="ann"))
        await anext(stream)
        await forget(settings, tmp_path, user="ann")
        await text_of(stream)
        while cache._flights:  # the answer has come, and may be on its way to the store
            await asyncio.sleep(0.01)
        await answered(cache, engine, question(user="bob"))
        assert len(engine.queries) == 2
        assert await answered(cache, engine, question(user="bob")) == "Hi there! 🪨"
        assert len(engine.queries) == 2, "bob's own is stored"
        await cache.close()

    asyncio.run(main())


# Size


def test_those_that_were_not_used_make_place(settings: ServePart, tmp_path: Path) -> None:
    async def main() -> None:
        engine = ScriptedEngine(lambda query: iter([Piece(text="x" * 100_000, finish="stop", tokens=1)]))
        small = settings.model_copy(update={"cache": settings.cache.model_copy(update={"size": 1})})
        cache = cache_of(small, engine, tmp_path)
        for number in range(40):
            await answered(cache, engine, question(str(number)))
            assert cache.gauges()["cache_bytes"] <= 1 << 20
        before = len(engine.queries)
        await answered(cache, engine, question("39"))
        assert len(engine.queries) == before
        await answered(cache, engine, question("0"))
        assert len(engine.queries) == before + 1
        assert 1 <= cache.gauges()["cache_answers"] <= 10
        await cache.close()

    asyncio.run(main())


def test_a_file_outlives_the_server_and_one_of_another_format_is_begun_anew(tmp_path: Path) -> None:
    settings = ServePart(cache=CachePart(backend="sqlite"))

    async def main() -> None:
        engine = ScriptedEngine()
        for _ in range(2):
            cache = cache_of(settings, engine, tmp_path)
            await answered(cache, engine, question())
            await cache.close()
        assert len(engine.queries) == 1
        with sqlite3.connect(tmp_path / "cache" / "answers.db") as connection:
            connection.execute("PRAGMA user_version = 99")
        connection.close()
        cache = cache_of(settings, engine, tmp_path)
        await answered(cache, engine, question())
        assert len(engine.queries) == 2
        await cache.close()

    asyncio.run(main())
