"""The two limiters count alike, and many processes over one Redis never pass a limit."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.redis_server import RedisServer
from tuneloop.serving.access.gcra import LEASE, MINUTE, MOST, RateLimits, RateVerdict
from tuneloop.serving.access.memory_limits import MemoryLimits
from tuneloop.serving.access.redis_limits import RedisDown, RedisLimits, redis_client

START = 1_800_000_000_000
CALLERS = itertools.count()
LIMIT = st.one_of(st.just(0), st.integers(1, 9), st.integers(1, MOST), st.just(MOST))
AMOUNT = st.one_of(st.integers(0, 9), st.integers(0, MOST))
STEP = st.tuples(
    st.sampled_from(["take", "take", "take", "settle", "renew"]),
    st.one_of(st.integers(0, 5000), st.integers(0, 2 * MINUTE), st.integers(-500, 0)),
    AMOUNT,
    AMOUNT,
    st.sampled_from(["", "a", "b", "c", "d"]),
    st.booleans(),
)


@pytest.fixture(scope="module")
def pair(redis: RedisServer) -> Any:
    with asyncio.Runner() as runner:
        client = redis_client(redis.url, 60)
        yield runner, RedisLimits(client, "test")
        runner.run(client.aclose())


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(limits=st.builds(RateLimits, LIMIT, LIMIT, st.integers(0, 3)), steps=st.lists(STEP, max_size=14))
def test_memory_and_redis_count_alike(pair: Any, limits: RateLimits, steps: list[Any]) -> None:
    runner, shared = pair

    async def main() -> None:
        memory, caller, now = MemoryLimits(), str(next(CALLERS)), START
        for op, passed, requests, tokens, lease, back in steps:
            now += passed
            if op == "renew":
                for limiter in (memory, shared):
                    await limiter.renew(caller, lease or "a", now)
                continue
            if op == "settle" and back:
                requests, tokens = -requests, -tokens
            outcomes = [
                await getattr(limiter, op)(caller, limits, requests, tokens, lease, now) for limiter in (memory, shared)
            ]
            assert outcomes[0] == outcomes[1], (op, now - START, requests, tokens, lease)

    runner.run(main())


def run(work: Any) -> Any:
    return asyncio.run(work)


def take(
    limiter: MemoryLimits, limits: RateLimits, at: int, requests: int = 1, tokens: int = 0, lease: str = ""
) -> RateVerdict:
    return run(limiter.take("k", limits, requests, tokens, lease, START + at))  # type: ignore[no-any-return]


def test_a_minute_may_be_used_at_once_and_comes_back_evenly() -> None:
    limiter, limits = MemoryLimits(), RateLimits(requests=60)
    assert [take(limiter, limits, 0).refused for _ in range(61)] == [""] * 60 + ["requests"]
    last = take(limiter, limits, 0)
    assert (last.wait, last.requests_left, last.requests_reset) == (1000, 0, MINUTE)
    assert take(limiter, limits, 999).refused == "requests"
    assert take(limiter, limits, 1000).refused == ""
    assert take(limiter, limits, 1000).wait == 1000, "after the wait that is named it is let in, not before"
    assert [take(limiter, limits, 31_000).refused for _ in range(31)] == [""] * 30 + ["requests"]


def test_all_or_nothing() -> None:
    limiter, limits = MemoryLimits(), RateLimits(requests=10, tokens=100, streams=1)
    assert take(limiter, limits, 0, 1, 60, "a").refused == ""
    short = take(limiter, limits, 0, 1, 60, "b")
    assert (short.refused, short.requests_left, short.tokens_left) == ("tokens", 9, 40)
    busy = take(limiter, limits, 0, 1, 40, "b")
    assert (busy.refused, busy.requests_left, busy.tokens_left) == ("streams", 9, 40)
    run(limiter.settle("k", limits, 0, -50, "a", START))
    again = take(limiter, limits, 0, 1, 90, "b")
    assert (again.refused, again.requests_left, again.tokens_left) == ("", 8, 0)


def test_what_is_given_back_is_never_more_than_a_minute() -> None:
    limiter, limits = MemoryLimits(), RateLimits(tokens=100)
    assert take(limiter, limits, 0, 1, 100).refused == ""
    run(limiter.settle("k", limits, 0, -100, "", START + MINUTE // 2))
    assert take(limiter, limits, MINUTE // 2, 1, 0).tokens_left == 100
    run(limiter.settle("k", limits, 0, 250, "", START + MINUTE // 2))
    debt = take(limiter, limits, MINUTE // 2 + MINUTE, 1, 1)
    assert (debt.refused, debt.wait) == ("tokens", 51 * MINUTE // 100), "250 - 100 in a minute - 99"


def test_an_answer_that_nobody_renews_does_not_count_for_ever() -> None:
    limiter, limits = MemoryLimits(), RateLimits(streams=1)
    assert take(limiter, limits, 0, 1, 0, "a").refused == ""
    run(limiter.renew("k", "a", START + LEASE - 1))
    assert take(limiter, limits, LEASE, 1, 0, "b").refused == "streams"
    assert take(limiter, limits, 2 * LEASE, 1, 0, "b").refused == ""


WORKER = """
import asyncio, json, sys
from tuneloop.serving.access.gcra import RateLimits
from tuneloop.serving.access.redis_limits import RedisLimits, redis_client

async def main(url, number):
    client = redis_client(url, 120)
    shared = RedisLimits(client)
    counts = {}
    plan = {"requests": (RateLimits(requests=60), 0, 1_800_000_000_000, 40), "tokens": (RateLimits(tokens=1000), 33, 1_800_000_000_000, 20),
            "streams": (RateLimits(streams=7), 0, 1_800_000_000_000, 10), "clock": (RateLimits(requests=6), 0, 0, 20)}
    await client.incr("ready")
    while int(await client.get("ready")) < 4:
        await asyncio.sleep(0.01)
    for name, (limits, tokens, now, times) in plan.items():
        verdicts = await asyncio.gather(*(shared.take(name, limits, 1, tokens, f"{number}-{n}", now) for n in range(times)))
        counts[name] = [v.refused for v in verdicts].count("")
    print(json.dumps(counts))
    await client.aclose()

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


def test_four_processes_pass_no_limit(redis: RedisServer) -> None:
    """At one time of the clock exactly the limit; with Redis' own clock what came back meanwhile as well, and no more."""

    async def seconds() -> float:
        client = redis_client(redis.url, 60)
        whole, micro = await client.time()
        await client.aclose()
        return float(whole) + float(micro) / 1e6

    began = run(seconds())
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, redis.url, str(n)], stdout=subprocess.PIPE) for n in range(4)
    ]
    counts = [json.loads(worker.communicate(timeout=400)[0]) for worker in workers]
    passed = run(seconds()) - began
    sums = {name: sum(count[name] for count in counts) for name in counts[0]}
    assert (sums["requests"], sums["tokens"], sums["streams"]) == (60, 30, 7)
    assert 6 <= sums["clock"] <= 6 + int(passed * 6 / 60)


def test_a_redis_that_is_not_there_is_told_and_left_alone(tmp_path: Path) -> None:
    async def main() -> None:
        server = RedisServer(tmp_path)  # never started
        client = redis_client(server.url, 30)
        shared = RedisLimits(client)
        with pytest.raises(RedisDown, match="onnect"):
            await shared.take("k", RateLimits(requests=1), 1, 0, "")
        with pytest.raises(RedisDown, match="a moment ago"):
            await shared.take("k", RateLimits(requests=1), 1, 0, "")
        await client.aclose()

    asyncio.run(main())
