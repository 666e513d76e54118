"""What a server does at signals, under whichever program runs it: SIGTERM drains it, SIGHUP reads its settings anew.

It wraps the handlers that uvicorn or gunicorn's worker has set, so it is begun when the application starts. Windows has
no SIGHUP, and in a terminal it means that the terminal has gone, which ends the server; an application that runs in a
thread gets no signals.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tuneloop.serving.http.drain import Drain

log = logging.getLogger("tuneloop.serving")


@contextmanager
def signals(drain: Drain, seconds: float, reload: Callable[[], Awaitable[None]]) -> Iterator[None]:
    """While the block runs: SIGTERM begins the drain, and what stopped the server before is called when nothing is
    under way, after `seconds`, or at a second SIGTERM; SIGHUP calls `reload`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = _Handlers(drain, seconds, reload)
    ours: dict[int, Callable[[int, FrameType | None], None]] = {signal.SIGTERM: handlers.on_term}
    if hasattr(signal, "SIGHUP") and not _in_terminal():
        ours[signal.SIGHUP] = handlers.on_hangup
    before: dict[int, Any] = {number: signal.signal(number, handler) for number, handler in ours.items()}
    handlers.stop = before[signal.SIGTERM]
    try:
        yield
    finally:
        for number, handler in ours.items():
            if signal.getsignal(number) == handler:
                signal.signal(number, before[number])


class _Handlers:
    """What is done at signals, on the loop of the server."""

    def __init__(self, drain: Drain, seconds: float, reload: Callable[[], Awaitable[None]]) -> None:
        self._drain, self._seconds, self._reload = drain, seconds, reload
        self._loop, self._tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()
        self.stop: Any = None
        """The handler of SIGTERM before ours."""

    def on_term(self, number: int, frame: FrameType | None) -> None:
        if self._drain.begun:
            _pass_on(self.stop)
            return
        self._drain.begin()
        self._loop.call_soon_threadsafe(self._begin, self._drained)

    def on_hangup(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._begin, self._reloaded)

    def _begin(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self._loop.create_task(work())
        self._tasks.add(task)  # the loop itself holds no task
        task.add_done_callback(self._tasks.discard)

    async def _reloaded(self) -> None:
        await self._reload()

    async def _drained(self) -> None:
        under_way = {"under_way": self._drain.under_way, "seconds": self._seconds}
        log.warning("draining", extra={"fields": under_way})
        if not await self._drain.done(self._seconds):
            log.warning("drain timed out", extra={"fields": {"under_way": self._drain.under_way}})
        _pass_on(self.stop)


def _in_terminal() -> bool:
    try:
        return os.isatty(0)
    except OSError:  # closed
        return False


def _pass_on(handler: Any) -> None:
    """Do what would have been done at SIGTERM without us."""
    if callable(handler):
        handler(signal.SIGTERM, None)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
