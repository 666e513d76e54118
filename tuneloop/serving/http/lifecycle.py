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
from collections.abc import Awaitable, Callable, Iterator
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
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    before: dict[int, Any] = {}

    def begin(work: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            await work()

        task = loop.create_task(run())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def drained() -> None:
        log.warning("draining", extra={"fields": {"under_way": drain.under_way, "seconds": seconds}})
        if not await drain.done(seconds):
            log.warning("drain timed out", extra={"fields": {"under_way": drain.under_way}})
        _pass_on(before[signal.SIGTERM])

    def on_term(number: int, frame: FrameType | None) -> None:
        if drain.begun:
            _pass_on(before[signal.SIGTERM])
            return
        drain.begin()
        loop.call_soon_threadsafe(begin, drained)

    def on_hangup(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(begin, reload)

    ours: dict[int, Callable[[int, FrameType | None], None]] = {signal.SIGTERM: on_term}
    if hasattr(signal, "SIGHUP") and not _in_terminal():
        ours[signal.SIGHUP] = on_hangup
    for number, handler in ours.items():
        before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in ours.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, before[number])


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
