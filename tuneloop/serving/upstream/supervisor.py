"""Watches over a child process that serves: when it ends without having been closed, another is started."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.base.language import t

log = logging.getLogger("tuneloop.serving")

FIRST_WAIT, LONGEST_WAIT = 0.2, 30.0
"""Seconds before a child is started again: twice as long each time that it did not come up."""
STEADY_SECONDS = 60.0
"""A child that lived so long has not failed to come up."""


class Serving(Protocol):
    """A child process. Making one starts it; `begin` returns once it can be asked, or raises a coded error."""

    def begin(self) -> None: ...

    def wait(self) -> str:
        """Block until it has ended; how, in words."""

    def close(self) -> None:
        """End it, from any thread and at any time; may be repeated."""


Child = TypeVar("Child", bound=Serving)


class Supervisor(Generic[Child]):
    """Holds one running child of those that `make` starts. Raises what the first one's `begin` raises."""

    def __init__(self, make: Callable[[], Child], notice: Callable[[str], None] = log.warning) -> None:
        self._make, self._notice = make, notice
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self.child: Child | None = None
        """The child that can be asked; None while there is none."""
        self.restarts = 0
        self.wait = FIRST_WAIT
        """Seconds until the next start is tried."""
        self._latest = self._begun()
        self.child = self._latest
        self._thread = threading.Thread(target=self._watch, name="tuneloop-supervisor", daemon=True)
        self._thread.start()

    async def running(self, patience: float, lost: Child | None = None) -> Child:
        """The child, waited for `patience` seconds where it is being started; never the one that was `lost`.

        Raises TL-SERVE-DOWN.
        """
        end = time.monotonic() + patience
        while (child := self.child) is None or child is lost:
            if self._closed.is_set() or time.monotonic() > end:
                raise self.down()
            await asyncio.sleep(0.02)
        return child

    def down(self) -> ServeError:
        """The error of a request that finds no child."""
        if self._closed.is_set():
            return ServeError("TL-SERVE-CLOSING")
        words = t("it is being started again")
        return ServeError("TL-SERVE-DOWN", status=503, error=words, seconds=max(1, round(self.wait)))

    def close(self) -> None:
        """End the child and the watch. May be repeated."""
        with self._lock:
            self._closed.set()
            self.child = None
            self._latest.close()
        self._thread.join(10.0)

    def _begun(self) -> Child:
        with self._lock:
            if self._closed.is_set():
                raise ServeError("TL-SERVE-CLOSING")
            child = self._latest = self._make()
        try:
            child.begin()
        except BaseException:
            child.close()
            raise
        return child

    def _watch(self) -> None:
        while not self._closed.is_set():
            began = time.monotonic()
            how = self._latest.wait()
            if self._closed.is_set():
                return
            self.child = None
            self._latest.close()
            self._notice(t("the engine's process has ended: {how}; it is started again", how=how))
            self.wait = FIRST_WAIT if time.monotonic() - began > STEADY_SECONDS else self._longer()
            self._restart()

    def _restart(self) -> None:
        while not self._closed.wait(self.wait):
            try:
                child = self._begun()
            except TuneloopError as error:
                if not self._closed.is_set():
                    self.wait = self._longer()
                    self._notice(t("the engine's process could not be started: {error}", error=error.what))
                continue
            with self._lock:
                if not self._closed.is_set():
                    self.child = child
            self.restarts += 1
            self._notice(t("the engine's process runs again"))
            return

    def _longer(self) -> float:
        return min(LONGEST_WAIT, 2 * self.wait)
