"""An engine's child process as its parent has it: frames go out by one thread and come in by another, so no caller
waits for a pipe."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import IO, Any

from tuneloop.base import frames
from tuneloop.base.environment import waits_our_way
from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.base.frames import exit_words, receive, start_child
from tuneloop.base.language import t
from tuneloop.serving.wire import read_error

Frame = dict[str, Any]
LOADING_SECONDS = 7200.0
"""How long a child may take to load its model; it may have to be fetched first."""
END_SECONDS = 2.0
"""How long a child may take to end by itself once nobody writes to it any more."""
LOOK_SECONDS = 0.2
"""Between two looks at whether it stands still."""
ENVIRONMENT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "192", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""oneDNN keeps its code for each number of rows there may be (`inference/fast_step.py`); weights lie in large pages."""
SPINS = {"GOMP_SPINCOUNT": "10000"}
"""Products of a few rows are short: threads that wait longer for the next one make a step of 8 rows a tenth faster."""


class ChildProcess:
    """A running child, which is told by `load_frame` what to load: it answers "loaded", or "failed" with its error.

    `on_frame` is called with each of its frames, in a thread of its own. `late` says since when it stands still, in
    words, None where it does not; it is asked once the child has loaded. `close` it when done.
    """

    def __init__(
        self, module: str, load_frame: Frame, on_frame: Callable[[Frame], None], late: Callable[[], str | None]
    ) -> None:
        self._process = start_child(module, environment=ENVIRONMENT | (SPINS if waits_our_way() else {}))
        self._on_frame, self._late = on_frame, late
        self._loaded = False
        self._failure: TuneloopError | None = None
        self._out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.ended = threading.Event()
        """Set when no more frames will come."""
        self.started = time.monotonic()
        self._threads = [
            threading.Thread(target=run, name=f"tuneloop-{name}", daemon=True)
            for name, run in (("write", self._write), ("read", self._read))
        ]
        for thread in self._threads:
            thread.start()
        self.send(load_frame)

    def begin(self) -> None:
        """Wait until it has loaded. Raises its error, TL-SERVE-DOWN where it gives none."""
        end = self.started + LOADING_SECONDS
        while not self._loaded and self._failure is None and time.monotonic() < end:
            if self.ended.wait(LOOK_SECONDS / 4):
                break
        if self._failure is not None:
            raise self._failure
        if not self._loaded:
            words = self.stop() if self.ended.is_set() else still_words(LOADING_SECONDS)
            raise ServeError("TL-SERVE-DOWN", status=503, error=words, seconds=1)

    def wait(self) -> str:
        """Wait until it has ended, and end it where it stands still. How it ended, in words."""
        while not self.ended.wait(LOOK_SECONDS):
            if words := self._late():
                self.stop()
                return words
        return self.stop()

    def close(self) -> None:
        self.stop(END_SECONDS)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, frame: Frame) -> None:
        """Send a frame, at once; one to a child that has ended is lost. Raises TypeError for what is no JSON."""
        self._out.put(frames.frame(frame))

    def stop(self, patience: float = 0.0) -> str:
        """End the child, by force after `patience` seconds, and wait until nothing of it is left. How it ended."""
        self._out.put(None)
        if patience:
            with contextlib.suppress(Exception):
                self._process.wait(patience)
        self._process.kill()
        code = self._process.wait()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was not yet written, to one that reads no more
                if pipe is not None:
                    pipe.close()
        return exit_words(code)

    def _write(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            while (frame := self._out.get()) is not None:
                pipe.write(frame)
                pipe.flush()
            pipe.close()
        except (OSError, ValueError):  # the child has ended: the reader hears of it
            pass

    def _read(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        try:
            while (frame := self._next(pipe)) is not None:
                self._on_frame(frame)
                if frame["do"] == "loaded":
                    self._loaded = True
                elif frame["do"] == "failed":
                    self._failure = read_error(frame["error"])
        finally:
            self.ended.set()

    @staticmethod
    def _next(pipe: IO[bytes]) -> Frame | None:
        try:
            frame = receive(pipe)  # type: ignore[arg-type]
        except (OSError, ValueError):  # cut off in the middle
            return None
        return None if frame is None else frame[0]


def still_words(seconds: float) -> str:
    """That a child stood still for so long."""
    return t("it stood still for {seconds:g} seconds", seconds=seconds)
