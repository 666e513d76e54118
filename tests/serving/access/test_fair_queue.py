"""The queue gives places in turn to the keys, and forgets who has gone."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.requests import ClientDisconnect, Request

from tests.serving.scripted import CHAT, NAME, ScriptedEngine
from tuneloop.base.errors import ServeError
from tuneloop.serving.access.fair_queue import Queue
from tuneloop.serving.admission import Caller, Question, Submit, through
from tuneloop.serving.engine import Query


def question(caller: str, user: str = "", receive: Any = None) -> Question:
    request = SimpleNamespace(state=SimpleNamespace(caller=Caller(caller)))
    if receive is not None:
        request.receive = receive
    return Question(cast(Request, request), Query("chat", NAME, chat=CHAT, user=user))


async def answer(submit: Submit, caller: str, user: str) -> None:
    stream = await submit(question(caller, user))
    async for _ in stream:
        pass


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_key_with_many_requests_delays_no_other() -> None:
    async def main() -> None:
        engine = ScriptedEngine(capacity=1)
        submit = through([Queue(engine, 99)], engine)
        first = await submit(question("busy", "held"))
        tasks = [asyncio.ensure_future(answer(submit, "busy", f"busy{n}")) for n in range(6)]
        await settle()
        tasks += [asyncio.ensure_future(answer(submit, "shop", f"shop{n}")) for n in range(2)]
        tasks += [asyncio.ensure_future(answer(submit, "cafe", "cafe0"))]
        await settle()
        await first.aclose()
        await asyncio.gather(*tasks)
        order = [query.user for query in engine.queries][1:]
        assert order == ["busy0", "shop0", "cafe0", "busy1", "shop1", "busy2", "busy3", "busy4", "busy5"]
        assert engine.most == 1

    asyncio.run(main())


def test_long_jobs_stand_behind_who_waits_for_an_answer() -> None:
    async def main() -> None:
        engine = ScriptedEngine(capacity=1)
        submit = through([Queue(engine, 99)], engine)
        first = await submit(question("shop"))

        async def behind(user: str) -> None:
            job = question("shop", user)
            job.request.state.behind = True
            async for _ in await submit(job):
                pass

        tasks = [asyncio.ensure_future(behind(f"job{n}")) for n in range(2)]
        await settle()
        tasks += [asyncio.ensure_future(answer(submit, "shop", f"shop{n}")) for n in range(3)]
        await settle()
        await first.aclose()
        await asyncio.gather(*tasks)
        assert [query.user for query in engine.queries][1:] == ["shop0", "shop1", "shop2", "job0", "job1"]

    asyncio.run(main())


def test_one_who_hangs_up_while_waiting_gives_the_place_free() -> None:
    async def main() -> None:
        engine, hang_up = ScriptedEngine(capacity=1), asyncio.Event()
        queue = Queue(engine, 1)
        submit = through([queue], engine)

        async def receive() -> dict[str, str]:
            await hang_up.wait()
            return {"type": "http.disconnect"}

        first = await submit(question("a"))
        waiting = asyncio.ensure_future(submit(question("b", receive=receive)))
        await settle()
        with pytest.raises(ServeError, match="TL-SERVE-FULL"):
            await submit(question("c"))
        assert queue.gauges() == {"queue_waiting": 1, "queue_running": 1, "queue_refused_total": 1}
        hang_up.set()
        with pytest.raises(ClientDisconnect):
            await waiting
        last = asyncio.ensure_future(submit(question("c")))
        await settle()
        await first.aclose()
        await (await last).aclose()
        assert queue.gauges() == {"queue_waiting": 0, "queue_running": 0, "queue_refused_total": 1}
        assert len(engine.queries) == 2

    asyncio.run(main())


def test_what_the_engine_refuses_takes_no_place() -> None:
    async def main() -> None:
        engine = ScriptedEngine(capacity=1)
        submit = through([Queue(engine, 0)], engine)
        engine.refusal = ServeError("TL-SERVE-CONTEXT", tokens=9, context=4)
        for _ in range(3):
            with pytest.raises(ServeError, match="TL-SERVE-CONTEXT"):
                await submit(question("a"))
        engine.refusal = None
        await answer(submit, "a", "")

    asyncio.run(main())


def test_who_waits_is_told_when_the_server_ends() -> None:
    async def main() -> None:
        engine = ScriptedEngine(capacity=1)
        submit = through([Queue(engine, 4)], engine)
        await submit(question("a"))
        waiting = [asyncio.ensure_future(submit(question("b"))) for _ in range(3)]
        await settle()
        engine.close()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [getattr(one, "code", "") for one in outcomes] == ["TL-SERVE-CLOSING"] * 3

    asyncio.run(main())


def test_places_that_come_later_are_used() -> None:
    async def main() -> None:
        engine = ScriptedEngine(capacity=1)
        submit = through([Queue(engine, 4)], engine)
        held = [await submit(question("a"))]
        waiting = asyncio.ensure_future(submit(question("b")))
        await settle()
        assert not waiting.done()
        engine.capacity = 2
        held.append(await asyncio.wait_for(waiting, 60))
        assert len(engine.running) == 2

    asyncio.run(main())


def test_a_queue_goes_on_with_what_waits_under_other_settings() -> None:
    async def main() -> None:
        engine = ScriptedEngine(capacity=1)
        before, after = Queue(engine, 4), Queue(engine, 0)
        held = await through([before], engine)(question("a"))
        waiting = asyncio.ensure_future(through([before], engine)(question("b")))
        await settle()
        after.take_over(before)
        with pytest.raises(ServeError, match="TL-SERVE-FULL"):
            await through([after], engine)(question("c"))
        await held.aclose()
        await (await waiting).aclose()
        await answer(through([after], engine), "c", "")

    asyncio.run(main())
