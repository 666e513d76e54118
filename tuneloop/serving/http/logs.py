"""A server's log: lines of JSON, one a request, and no text of any request or answer in them."""

from __future__ import annotations

import atexit
import json
import logging
import sys
import time
import traceback
from contextlib import suppress
from contextvars import ContextVar
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue
from typing import Any, TextIO

from tuneloop.base.environment import environment
from tuneloop.base.errors import TuneloopError

REQUEST: ContextVar[str] = ContextVar("request", default="")
"""The id of the request that is being answered."""
LOGGERS = ("tuneloop", "uvicorn", "uvicorn.error")
"""What is written as JSON; uvicorn's own line a request has the path and no tokens, and is left out."""

MOST_LINES = 10_000
_WAITING: list[Queue[Any]] = []
"""What is to be written, one queue for each `write_json`."""


class JsonLines(logging.Formatter):
    """A record as one line of JSON. Of an exception the type and the places are told; its words, which may repeat a
    text, only where TUNELOOP_DEBUG is set."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if request := REQUEST.get():
            line["request"] = request
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            line |= _fault(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, separators=(",", ":"), default=str)


def _fault(error: BaseException) -> dict[str, Any]:
    """What may be told of an exception.

    >>> sorted(_fault(ValueError("a secret")))
    ['error', 'frames']
    """
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    out: dict[str, Any] = {
        "error": error.code if isinstance(error, TuneloopError) else type(error).__name__,
        "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    return out | ({"words": str(error)} if environment().verbose else {})


class _Aside(QueueHandler):
    """Hands lines to another thread, which writes them: a reader of the log that stands still holds up no answer. What
    comes when `MOST_LINES` wait is left out."""

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(Full):
            self.queue.put_nowait(record)


def flush(seconds: float = 2.0) -> None:
    """Wait until what was logged is written, for so long at most."""
    end = time.monotonic() + seconds
    while any(lines.unfinished_tasks for lines in _WAITING) and time.monotonic() < end:
        time.sleep(0.01)


def write_json(stream: TextIO | None = None) -> None:
    """Let this process write its log as JSON, to stderr where no stream is given. For the process of a server alone."""
    lines: Queue[Any] = Queue(MOST_LINES)
    _WAITING.append(lines)
    QueueListener(lines, logging.StreamHandler(stream or sys.stderr)).start()
    handler = _Aside(lines)
    handler.setFormatter(JsonLines())
    atexit.register(flush)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], name == "uvicorn.error"
    for name in ("tuneloop", "uvicorn"):
        logging.getLogger(name).addHandler(handler)
    for name in ("tuneloop.serving", "tuneloop.audit"):
        logging.getLogger(name).setLevel(logging.INFO)
    access = logging.getLogger("uvicorn.access")
    access.handlers, access.propagate = [], False
