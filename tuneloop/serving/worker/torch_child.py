"""The engine's process: one thread admits requests, the main one computes a step of all answers after the other.

A request is refused or accepted at once, also while others are answered; its errors are codes and facts, which become
words where they are read. The process ends when its standard input does, so also with its parent, in the middle of a
computation too.
"""

from __future__ import annotations

import gc
import logging
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tuneloop.base import language
from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.base.frames import answers_pipe, receive, send
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.engine import Query
from tuneloop.serving.wire import error_frame, read_query

log = logging.getLogger("tuneloop.serving")
BEAT = 1.0
"""Seconds after which the main thread is heard of at the latest, while it has nothing to do."""


class Answering(Protocol):
    """A loaded model that answers queries: `accept` and `is_slow` are called in other threads than all else."""

    @property
    def about(self) -> dict[str, Any]: ...

    @property
    def busy(self) -> bool: ...

    def gauges(self) -> dict[str, float]: ...

    def loaded(self) -> list[str]: ...

    def is_slow(self, query: Query, source: dict[str, Any] | None) -> bool: ...

    def accept(self, number: int, query: Query, source: dict[str, Any] | None) -> Any: ...

    def begin(self, job: Any) -> None: ...

    def cancel(self, number: int) -> None: ...

    def refuse_waiting(self) -> list[list[Any]]: ...

    def step(self) -> list[list[Any]]: ...


class Child:
    """The two threads over one loaded model."""

    def __init__(self, pipe_in: BinaryIO, pipe_out: BinaryIO) -> None:
        self._in, self._out = pipe_in, pipe_out
        self._writing = threading.Lock()
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._slow: queue.SimpleQueue[tuple[int, Query, Any]] = queue.SimpleQueue()
        """Queries that take long to accept: an adapter must be loaded, a schema compiled."""
        self._admitted = threading.Lock()
        self._pending: set[int] = set()
        """Numbers of queries that are neither accepted nor refused, nor cancelled."""
        self._model: Answering | None = None
        self._sent = 0.0

    def run(self) -> None:
        """Load what the first frame names, then answer until standard input ends."""
        for name, target in (("admit", self._admit), ("admit-slow", self._admit_slow)):
            threading.Thread(target=target, name=f"tuneloop-{name}", daemon=True).start()
        _, frame = self._inbox.get()
        language.use(frame["language"])
        try:
            self._model = _loaded(frame)
        except Exception as error:
            return self._send({"do": "failed", "error": error_frame(_coded(error))})
        gc.collect()
        gc.freeze()  # the model is no garbage: it need not be looked through again and again
        self._send({"do": "loaded", "about": self._model.about})
        while True:
            self._turn(self._model)

    def _turn(self, model: Answering) -> None:
        """What has come in, then one step."""
        events: list[list[Any]] = []
        try:
            while True:
                what, content = self._inbox.get(timeout=BEAT) if not model.busy else self._inbox.get_nowait()
                if what == "begin":
                    model.begin(content)
                elif what == "cancel":
                    model.cancel(content)
                elif what == "drain":
                    events += model.refuse_waiting()
        except queue.Empty:
            pass
        if model.busy:
            events += model.step()
        now = time.monotonic()
        if events or now - self._sent >= BEAT / 2:
            self._sent = now
            self._send({"do": "step", "events": events, "gauges": model.gauges(), "loaded": model.loaded()})

    def _admit(self) -> None:
        while (frame := receive(self._in)) is not None:
            content = frame[0]
            what = content.pop("do")
            if what == "query":
                self._take(content["id"], content["query"], content["source"])
            elif what == "cancel":
                with self._admitted:
                    self._pending.discard(content["id"])
                    self._inbox.put((what, content["id"]))
            else:
                self._inbox.put((what, content))
        os._exit(0)  # whatever the main thread is computing: nobody is there to hear it

    def _take(self, number: int, frame: dict[str, Any], source: dict[str, Any] | None) -> None:
        assert self._model is not None
        query = read_query(frame)
        self._pending.add(number)
        if self._model.is_slow(query, source):
            self._slow.put((number, query, source))
        else:
            self._accept(number, query, source)

    def _admit_slow(self) -> None:
        while True:
            self._accept(*self._slow.get())

    def _accept(self, number: int, query: Query, source: dict[str, Any] | None) -> None:
        assert self._model is not None
        try:
            job = self._model.accept(number, query, source)
        except Exception as error:
            self._pending.discard(number)
            self._send({"do": "refused", "id": number, "error": error_frame(_coded(error))})
            return
        with self._admitted:
            if number not in self._pending:  # cancelled in the meantime
                return
            self._pending.discard(number)
            self._send({"do": "accepted", "id": number, "prompt_tokens": job.prompt_tokens})
            self._inbox.put(("begin", job))

    def _send(self, frame: dict[str, Any]) -> None:
        with self._writing:
            try:
                send(self._out, frame)
            except OSError:  # nobody is there to hear it
                os._exit(0)


def _coded(error: Exception) -> TuneloopError:
    if isinstance(error, TuneloopError):
        return error
    log.error("the engine's process met an error", exc_info=error)
    return ServeError("TL-SERVE-FAILED", error=f"{type(error).__name__}: {error}"[:300])


def _loaded(frame: dict[str, Any]) -> Answering:
    from tuneloop.serving.worker.served_model import serving_model

    return serving_model(frame["ref"], Path(frame["workspace"]), ServePart(**frame["settings"]), frame["key"])


def main() -> None:
    """Answer until standard input ends."""
    pipe = answers_pipe()
    Child(sys.stdin.buffer, pipe).run()
