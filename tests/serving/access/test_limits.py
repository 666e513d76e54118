"""The step of the limits over HTTP: what is refused and how that is told, what is given back, and a Redis that dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.redis_server import RedisServer, redis_server
from tests.serving.scripted import CHAT, NAME, ScriptedEngine, app_of
from tuneloop.recipe.serve import LimitsPart, ServePart
from tuneloop.serving.access import memory_limits
from tuneloop.serving.access.access import Access
from tuneloop.serving.access.fair_queue import Queue
from tuneloop.serving.access.gcra import RateLimits
from tuneloop.serving.access.limits import KeyLimits, limits_step
from tuneloop.serving.access.redis_limits import RedisLimits, redis_client
from tuneloop.serving.engine import Piece, Query

CHATS = "/v1/chat/completions"
PROMPT = 7
"""Tokens of a prompt as the scripted engine counts them; it writes three."""


@pytest.fixture(autouse=True)
def _one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute is long enough for a test on any machine: nothing comes back meanwhile."""
    monkeypatch.setattr(memory_limits, "clock", lambda: 1_000_000)


def client_of(step: KeyLimits, engine: ScriptedEngine | None = None) -> TestClient:
    engine = engine or ScriptedEngine(capacity=8)
    return TestClient(
        app_of(engine, steps=[Access("k"), step, Queue(engine, 8)]), headers={"Authorization": "Bearer k"}
    )


def body(**more: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": CHAT, **more}


def test_requests_a_minute() -> None:
    with client_of(KeyLimits(RateLimits(requests=3), 100)) as client:
        for rest in ("2", "1", "0"):
            reply = client.post(CHATS, json=body())
            assert reply.status_code == 200
            assert reply.headers["x-ratelimit-limit-requests"] == "3"
            assert reply.headers["x-ratelimit-remaining-requests"] == rest
            assert "x-ratelimit-limit-tokens" not in reply.headers
        for stream in (False, True):
            reply = client.post(CHATS, json=body(stream=stream))
            assert (reply.status_code, reply.json()["error"]["code"]) == (429, "TL-SERVE-LIMIT")
            assert reply.json()["error"]["type"] == "rate_limit_error"
            assert "3 requests a minute" in reply.json()["error"]["message"]
            assert 1 <= int(reply.headers["retry-after"]) <= 20
            assert reply.headers["x-ratelimit-remaining-requests"] == "0"
            assert reply.headers["x-ratelimit-reset-requests"].endswith("s")
        assert client.get("/v1/models").status_code == 429, "other routes count as well"
        assert client.get("/healthz").status_code == 200


def test_a_body_that_is_refused_counts_as_a_request() -> None:
    with client_of(KeyLimits(RateLimits(requests=2), 100)) as client:
        assert [client.post(CHATS, content=b"{").status_code for _ in range(2)] == [400, 400]
        assert client.post(CHATS, json=body()).status_code == 429


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_that_were_not_used_come_back(stream: bool) -> None:
    """50 are reserved for the answer and three are written: without a refund the second request would be refused."""
    with client_of(KeyLimits(RateLimits(tokens=100), 50)) as client:
        rests = []
        for _ in range(4):
            reply = client.post(CHATS, json=body(stream=stream))
            assert reply.status_code == 200
            rests.append(int(reply.headers["x-ratelimit-remaining-tokens"]))
    reserved = 100 - rests[0]
    assert 50 < reserved < 70
    used = [rests[0] - rest for rest in rests]
    assert used[0] == 0
    assert used == [n * (PROMPT + 3) for n in range(4)]


def test_a_request_that_the_engine_refuses_uses_no_tokens() -> None:
    engine = ScriptedEngine()
    with client_of(KeyLimits(RateLimits(tokens=100), 80), engine) as client:
        for _ in range(3):
            assert client.post(CHATS, json=body(model="gpt-4o")).status_code == 404
        assert client.post(CHATS, json=body()).status_code == 200


def test_more_than_a_minute_has() -> None:
    engine = ScriptedEngine()
    with client_of(KeyLimits(RateLimits(tokens=100), 1024), engine) as client:
        reply = client.post(CHATS, json=body(max_tokens=200))
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "TL-SERVE-LIMIT-SIZE")
        assert (reply.headers.get("x-should-retry"), reply.headers.get("retry-after")) == ("false", None)
        assert engine.queries == []
        assert client.post(CHATS, json=body()).status_code == 200, "without a length it becomes as long as it may"
        assert engine.queries[0].max_new_tokens is not None
        assert 80 < engine.queries[0].max_new_tokens < 100


def test_several_prompts_are_one_request() -> None:
    step = KeyLimits(RateLimits(requests=2, tokens=1000, streams=1), 10)
    with client_of(step) as client:
        for _ in range(2):
            reply = client.post("/v1/completions", json={"model": NAME, "prompt": ["a", "b", "c"], "max_tokens": 5})
            assert reply.status_code == 200
            assert reply.json()["usage"]["total_tokens"] == 3 * (PROMPT + 3)
        assert client.post("/v1/embeddings", json={"model": "encoder", "input": ["a"]}).status_code == 429


def held(query: Query) -> Iterator[Piece]:
    for _ in range(10_000):
        yield Piece(text="x")


def test_answers_at_the_same_time() -> None:
    async def main() -> None:
        import httpx

        engine = ScriptedEngine(held, capacity=8)
        engine.seconds = 0.01
        step = KeyLimits(RateLimits(streams=2), 100)
        app = app_of(engine, steps=[step, Queue(engine, 8)])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t", timeout=60) as client:
            asked = [asyncio.ensure_future(client.post(CHATS, json=body(stream=True))) for _ in range(2)]
            while len(engine.running) < 2:
                await asyncio.sleep(0.01)
            reply = await client.post(CHATS, json=body())
            assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
            assert "2 answers at the same time" in reply.json()["error"]["message"]
            for one in asked:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            engine.script = lambda query: iter([Piece(text="y", finish="stop", tokens=1)])
            assert [(await client.post(CHATS, json=body())).status_code for _ in range(3)] == [200] * 3

    asyncio.run(main())


def shared_step(redis: RedisServer, *, refuse: bool) -> KeyLimits:
    client = redis_client(redis.url, 60)
    return KeyLimits(RateLimits(requests=2, streams=2), 100, RedisLimits(client, f"t{time.time_ns()}"), refuse=refuse)


def test_two_servers_share_a_limit(redis: RedisServer) -> None:
    one = shared_step(redis, refuse=True)
    two = shared_step(redis, refuse=True)
    two._shared._prefix = one._shared._prefix  # type: ignore[union-attr]
    with client_of(one) as first, client_of(two) as second:
        assert [c.post(CHATS, json=body()).status_code for c in (first, second)] == [200, 200]
        assert [c.post(CHATS, json=body()).status_code for c in (first, second)] == [429, 429]


def until(client: TestClient, status: int) -> Any:
    end = time.monotonic() + 120
    while (reply := client.post(CHATS, json=body())).status_code != status:
        assert time.monotonic() < end, (reply.status_code, reply.text)
        time.sleep(0.1)
    return reply


def test_a_redis_that_dies_and_comes_back_where_it_is_closed(tmp_path: Path) -> None:
    """While it is away requests are refused with 503; afterwards they are counted again, from the start."""
    with redis_server(tmp_path) as redis:
        step = shared_step(redis, refuse=True)
        with client_of(step) as client:
            assert [client.post(CHATS, json=body()).status_code for _ in range(3)] == [200, 200, 429]
            redis.stop()
            for _ in range(3):
                reply = client.post(CHATS, json=body())
                assert (reply.status_code, reply.json()["error"]["code"]) == (503, "TL-SERVE-LIMITER")
                assert reply.headers["retry-after"] == "1"
            assert step.gauges()["limits_redis_up"] == 0
            redis.start()
            until(client, 200)
            assert [client.post(CHATS, json=body()).status_code for _ in range(2)] == [200, 429]
            assert step.gauges()["limits_redis_up"] == 1


def test_a_redis_that_dies_and_comes_back_where_it_is_open(tmp_path: Path) -> None:
    """While it is away this process counts by itself; afterwards Redis does."""
    with redis_server(tmp_path) as redis, client_of(shared_step(redis, refuse=False)) as client:
        assert [client.post(CHATS, json=body()).status_code for _ in range(3)] == [200, 200, 429]
        redis.stop()
        assert [client.post(CHATS, json=body()).status_code for _ in range(3)] == [200, 200, 429]
        redis.start()
        until(client, 200)
        assert [client.post(CHATS, json=body()).status_code for _ in range(2)] == [200, 429]


def test_the_recipe_says_which_limits_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNELOOP_REDIS", raising=False)
    step = limits_step(ServePart(limits=LimitsPart(requests=1)))
    assert step._shared is None
    monkeypatch.setenv("TUNELOOP_REDIS", "redis://127.0.0.1:1/0")
    step = limits_step(ServePart(limits=LimitsPart(requests=1, without_redis="open")))
    assert step._shared is not None
    assert not step._refuse
    with client_of(step) as client:
        assert [client.post(CHATS, json=body()).status_code for _ in range(2)] == [200, 429]
