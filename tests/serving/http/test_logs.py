"""The log as lines of JSON: what is in them, and that nobody waits for who reads them."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import time
from collections.abc import Iterator

import pytest

from tuneloop.base.errors import ServeError
from tuneloop.serving.http import logs


@pytest.fixture
def _loggers() -> Iterator[None]:
    """The loggers as they were."""
    named = [logging.getLogger(name) for name in (*logs.LOGGERS, "uvicorn.access", "tuneloop.serving")]
    before = [(one, list(one.handlers), one.propagate, one.level) for one in named]
    yield
    for one, handlers, propagate, level in before:
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


@pytest.mark.usefixtures("_loggers")
def test_an_error_is_told_without_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    logs.write_json(stream)
    for debug in ("0", "1"):
        monkeypatch.setenv("TUNELOOP_DEBUG", debug)
        for error in (ValueError("a secret text"), ServeError("TL-SERVE-CLOSING")):
            try:
                raise error
            except Exception:
                logging.getLogger("tuneloop.serving").exception("an answer failed")
    logging.getLogger("uvicorn.error").warning("from %s", "uvicorn")
    logging.getLogger("uvicorn.access").info("GET /secret")
    logs.flush()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.get("error") for line in lines] == ["ValueError", "TL-SERVE-CLOSING"] * 2 + [None]
    assert [line.get("words") for line in lines][:3] == [None, None, "a secret text"]
    assert "test_logs.py" in lines[0]["frames"][-1]
    assert (lines[-1]["event"], lines[-1]["level"]) == ("from uvicorn", "warning")


@pytest.mark.usefixtures("_loggers")
def test_a_reader_that_stands_still_holds_up_nobody() -> None:
    reading, writing = os.pipe()
    first: list[str] = []
    with os.fdopen(reading) as reader:
        with os.fdopen(writing, "w") as stream:
            logs.write_json(stream)
            began = time.monotonic()
            for n in range(2 * logs.MOST_LINES):  # a pipe takes some hundred
                logging.getLogger("tuneloop.serving").info("line %d", n)
            assert time.monotonic() - began < 100
            thread = threading.Thread(target=lambda: first.extend(reader))
            thread.start()
            logs.flush(100)
        thread.join(100)
    assert [json.loads(line)["event"] for line in first[: logs.MOST_LINES]] == [
        f"line {n}" for n in range(logs.MOST_LINES)
    ]
