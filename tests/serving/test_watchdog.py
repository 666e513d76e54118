"""A child that ends or stands still: its requests fail, it is started again, and at some point no more."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.serving.adapter_workspace import outcome, query, run, until
from tuneloop.base.errors import ServeError
from tuneloop.recipe.serve import ServePart
from tuneloop.serving import supervisor
from tuneloop.serving.worker import child_process, torch_engine
from tuneloop.serving.worker.torch_engine import TorchEngine

Make = Callable[..., TorchEngine]
RESTARTS = len(supervisor.PAUSES)


def children() -> list[psutil.Process]:
    """The engines' processes of this file, zombies too; other tests of this worker may have children of their own."""
    every = psutil.Process().children()
    return [one for one in every if one.status() == psutil.STATUS_ZOMBIE or "dying_child" in " ".join(one.cmdline())]


@pytest.fixture
def heard() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: list[str]) -> Any:
    monkeypatch.setattr(torch_engine, "CHILD", "tests.serving.dying_child")
    monkeypatch.setattr(supervisor, "PAUSES", (0.0, *[0.05] * (RESTARTS - 1)))
    made: list[TorchEngine] = []
    threads = threading.enumerate()  # those of other tests' engines

    def engine(kind: str, **settings: Any) -> TorchEngine:
        (tmp_path / kind).mkdir()
        made.append(TorchEngine(tmp_path / kind, ServePart(**settings), tmp_path, heard.append))
        return made[-1]

    yield engine
    for one in made:
        one.close()
        one.close()
    assert not children()
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("tuneloop-")]
    assert not [thread for thread in ours if thread not in threads]


def test_a_child_that_ends_again_and_again_stays_down(make: Make, heard: list[str]) -> None:
    engine = make("ends-when-asked")
    for _ in range(RESTARTS + 1):
        error = run(outcome(engine, query("ends-when-asked")))
        assert isinstance(error, ServeError)
        assert (error.code, "SIGABRT" in str(error)) == ("TL-SERVE-DOWN", True)
    run(until(lambda: "stays down" in heard[-1]))
    assert not engine.ready
    assert engine.open
    began = time.monotonic()
    error = run(outcome(engine, query("ends-when-asked")))
    assert isinstance(error, ServeError)
    assert (error.code, error.facts["status"]) == ("TL-SERVE-DOWN", 503)
    assert time.monotonic() - began < 10, "it does not wait for what will not come"
    assert sum("started again" in words for words in heard) == RESTARTS
    assert not children()


def test_a_child_that_ends_by_itself_is_given_up(make: Make, heard: list[str]) -> None:
    make("ends-at-once")
    run(until(lambda: bool(heard) and "stays down" in heard[-1]))
    assert "it ended with 3" in heard[0]


def test_a_child_that_stands_still_is_ended(make: Make, heard: list[str]) -> None:
    engine = make("stands-still", watchdog=1)
    error = run(outcome(engine, query("stands-still")))
    assert isinstance(error, ServeError)
    assert error.code == "TL-SERVE-DOWN"
    assert "stood still for 1 seconds" in str(error)


def test_a_child_that_takes_no_requests_is_ended(make: Make) -> None:
    """Its main thread goes on, but the one that admits requests hangs."""
    engine = make("takes-none", watchdog=1)
    error = run(outcome(engine, query("takes-none")))
    assert isinstance(error, ServeError)
    assert "stood still" in str(error)


def test_a_child_that_never_loads_is_given_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "LOADING_SECONDS", 1.0)
    with pytest.raises(ServeError, match="TL-SERVE-DOWN"):
        make("never-loads")
    assert not children()


def test_closing_ends_all_requests_and_refuses_new_ones(make: Make) -> None:
    engine = make("takes-none")

    async def work() -> None:
        tasks = [asyncio.ensure_future(outcome(engine, query("takes-none"))) for _ in range(3)]
        await until(lambda: engine.pending == 3)
        closing = asyncio.ensure_future(asyncio.to_thread(engine.close, 60.0))
        await until(lambda: not engine.open)
        await asyncio.to_thread(engine.close)  # a second Ctrl-C does not wait
        await closing
        for error in [*await asyncio.gather(*tasks), await outcome(engine, query("takes-none"))]:
            assert isinstance(error, ServeError)
            assert error.code == "TL-SERVE-CLOSING"

    run(work())
    assert not engine.open
    assert not engine.ready
