"""The watch over a child: first start, restarts with pauses, waiting for it, and closing at any time."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from tests.serving.upstreams import on_loop
from tuneloop.base.errors import ServeError
from tuneloop.serving import supervisor
from tuneloop.serving.supervisor import Supervisor


class Child:
    """A child without a process: it ends when a test says so."""

    def __init__(self, fault: bool = False) -> None:
        self.ended, self.fault, self.closed = threading.Event(), fault, 0

    def begin(self) -> None:
        if self.fault:
            raise ServeError("TL-SERVE-VLLM", error="no")

    def wait(self) -> str:
        self.ended.wait()
        return "it ended"

    def close(self) -> None:
        self.closed += 1
        self.ended.set()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "PAUSES", (0.0, 0.01, 0.02))


def until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_first_one_that_does_not_start_is_an_error() -> None:
    bad = Child(fault=True)
    with pytest.raises(ServeError, match="TL-SERVE-VLLM"):
        Supervisor(lambda: bad).start()
    assert bad.closed == 1


def test_one_that_ends_is_started_again_until_it_comes_up() -> None:
    first, bad, second = Child(), Child(fault=True), Child()
    children, notes = iter([first, bad, second]), list[str]()
    lost: list[str] = []
    watched = Supervisor(lambda: next(children), notes.append, lost.append)
    watched.start()
    assert watched.child is first
    first.ended.set()
    until(lambda: watched.child is second)
    assert watched.restarts == 1
    assert [first.closed, bad.closed, second.closed] == [1, 1, 0]
    assert len(notes) == 3
    assert lost == ["it ended"]
    watched.close()
    assert second.closed
    assert watched.child is None
    watched.close()


def test_closing_while_it_is_started_again_ends_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Child()
    children = iter([first])
    monkeypatch.setattr(supervisor, "PAUSES", (30.0,))
    watched = Supervisor(lambda: next(children), lambda text: None)
    watched.start()
    first.ended.set()
    until(lambda: watched.child is None)
    began = time.monotonic()
    watched.close()
    assert time.monotonic() - began < 5
    assert not watched._thread.is_alive()


def test_closing_ends_one_that_does_not_come_up() -> None:
    class Loading(Child):
        def begin(self) -> None:
            self.ended.wait(60)
            raise ServeError("TL-SERVE-VLLM", error="it was ended")

    first, second = Child(), Loading()
    children, notes = iter([first, second]), list[str]()
    watched = Supervisor(lambda: next(children), notes.append)
    watched.start()
    first.ended.set()
    until(lambda: watched._latest is second)
    watched.close()
    assert (second.closed > 0, watched.ready, watched._thread.is_alive()) == (True, False, False)
    assert len(notes) == 1, "nobody is told that what was closed could not be started"


@on_loop
async def test_one_that_ends_again_and_again_stays_down_and_says_why() -> None:
    """Those that do not come up count, whatever keeps them from it; nobody waits for what will not come."""
    faulty = Child(fault=True)
    children, notes = [Child(), Child(), faulty], list[str]()

    def make() -> Child:
        if not children:
            raise OSError("no more processes")
        return children.pop(0)

    watched = Supervisor(make, notes.append)
    watched.start()
    for n in range(2):
        await asyncio.to_thread(until, lambda n=n: watched.restarts == n)
        child = watched.child
        assert child is not None
        child.ended.set()
    await asyncio.to_thread(until, lambda: watched.failure is not None)
    assert (watched.ready, watched.restarts, faulty.closed) == (False, 1, 1)
    assert "stays down" in notes[-1]
    assert "no more processes" in notes[-1]
    began = time.monotonic()
    with pytest.raises(ServeError, match="no more processes") as caught:
        await watched.running(30)
    assert time.monotonic() - began < 5
    assert (caught.value.code, caught.value.facts["status"]) == ("TL-SERVE-DOWN", 503)
    await asyncio.to_thread(watched.close)


@on_loop
async def test_a_request_waits_for_it_and_not_for_ever() -> None:
    first, second, gate = Child(), Child(), threading.Event()
    children = iter([first, second])

    def make() -> Child:
        child = next(children)
        if child is second:
            gate.wait(10)
        return child

    watched = Supervisor(make, lambda text: None)
    watched.start()
    assert await watched.running(1) is first
    first.ended.set()
    await asyncio.to_thread(until, lambda: watched.child is None)
    with pytest.raises(ServeError, match="TL-SERVE-DOWN") as caught:
        await watched.running(0.05)
    assert caught.value.facts["status"] == 503
    waiting = asyncio.ensure_future(watched.running(10, lost=first))
    gate.set()
    assert await waiting is second
    await asyncio.to_thread(watched.close)
    with pytest.raises(ServeError, match="TL-SERVE-CLOSING"):
        await watched.running(1)
