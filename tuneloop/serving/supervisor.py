"""Watches over a child process that serves: one that ends without having been closed is started again, with growing
pauses, and stays down when it ends again and again."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.base.language import t

log = logging.getLogger("tuneloop.serving")

PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each start after another; one that ends once more within WINDOW seconds stays down."""
WINDOW = 600.0
DOWN_SECONDS = 30
"""After which a client may ask again while the child stays down."""


class Serving(Protocol):
    """A child process. Making one starts it; `begin` returns once it can be asked, or raises a coded error."""

    def begin(self) -> None: ...

    def wait(self) -> str:
        """Block until it has ended, or must be; how, in words."""

    def close(self) -> None:
        """End it, from any thread and at any time; may be repeated."""


Child = TypeVar("Child", bound=Serving)


class Supervisor(Generic[Child]):
    """Holds one running child of those that `make` starts, from `start` to `close`.

    `say` hears what happens to it. `lost` is called with how a child ended, once nobody finds it any more: its requests
    are over.
    """

    def __init__(
        self,
        make: Callable[[], Child],
        say: Callable[[str], None] = log.warning,
        lost: Callable[[str], None] = lambda how: None,
    ) -> None:
        self._make, self._say, self._lost = make, say, lost
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._latest: Child | None = None
        self._starts: deque[float] = deque(maxlen=len(PAUSES))
        """When it was started again."""
        self._thread = threading.Thread(target=self._watch, name="tuneloop-supervisor", daemon=True)
        self.child: Child | None = None
        """The child that can be asked; None while there is none."""
        self.failure: str | None = None
        """Why it stays down."""
        self.restarts = 0
        self.seconds = 1.0
        """That the latest start took."""

    def start(self) -> None:
        """Start a child and the watch over it. Raises what its `begin` raises."""
        self.child = self._begun()
        self._thread.start()

    @property
    def ready(self) -> bool:
        return self.child is not None

    async def running(self, patience: float, lost: Child | None = None) -> Child:
        """The child, waited for `patience` seconds where it is being started; never the one that was `lost`.

        Raises TL-SERVE-DOWN, TL-SERVE-CLOSING.
        """
        end = time.monotonic() + patience
        while (child := self.child) is None or child is lost:
            if self._closed.is_set() or self.failure is not None or time.monotonic() > end:
                raise self.down()
            await asyncio.sleep(0.02)
        return child

    def down(self, how: str = "") -> ServeError:
        """The error of a request that finds no child, or whose child has ended."""
        if self._closed.is_set():
            return ServeError("TL-SERVE-CLOSING", status=503)
        words = self.failure or how or t("it is being started again")
        seconds = DOWN_SECONDS if self.failure is not None else max(1, round(self.seconds))
        return ServeError("TL-SERVE-DOWN", status=503, error=words, seconds=seconds)

    def close(self) -> None:
        """End the child and the watch. May be repeated."""
        with self._lock:
            self._closed.set()
            self.child = None
            if self._latest is not None:
                self._latest.close()
        if self._thread.is_alive():
            self._thread.join()

    def _begun(self) -> Child:
        began = time.monotonic()
        with self._lock:
            if self._closed.is_set():
                raise ServeError("TL-SERVE-CLOSING", status=503)
            child = self._latest = self._make()
        try:
            child.begin()
        except BaseException:
            child.close()
            raise
        self.seconds = time.monotonic() - began
        return child

    def _watch(self) -> None:
        child = self.child
        while child is not None:
            how = child.wait()
            if self._closed.is_set():
                return
            self.child = None
            child.close()
            self._lost(how)
            child = self._restarted(how)

    def _restarted(self, how: str) -> Child | None:
        """A child that was started in place of one that has ended; None where there will be none."""
        words = t("the engine's process has ended: {how}; it is started again", how=how)
        while True:
            recent = sum(time.monotonic() - start < WINDOW for start in self._starts)
            if recent >= len(PAUSES):
                self._stay_down(how)
                return None
            self._say(words)
            if self._closed.wait(PAUSES[recent]):
                return None
            self._starts.append(time.monotonic())
            try:
                child = self._begun()
            except Exception as error:
                if self._closed.is_set():
                    return None
                how = error.what if isinstance(error, TuneloopError) else f"{type(error).__name__}: {error}"
                words = t("the engine's process could not be started: {error}", error=how)
                continue
            with self._lock:
                if self._closed.is_set():
                    return None
                self.restarts += 1
                self.child = child
            self._say(t("the engine's process runs again"))
            return child

    def _stay_down(self, how: str) -> None:
        self.failure = how
        words = t(
            "the engine ended {n} times within {minutes:g} minutes ({reason}) and stays down: start the server again",
            n=len(PAUSES) + 1,
            minutes=WINDOW / 60,
            reason=how,
        )
        self._say(words)
