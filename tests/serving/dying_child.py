"""An engine's process without a model: it loads at once, and ends, stands still or goes on as the recipe's name says."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from tuneloop.base.frames import answers_pipe, receive, send

ABOUT = {"context": 8, "labels": [], "tasks": ["chat"], "capacity": 4, "shared": None}
BEAT = {"do": "step", "events": [], "gauges": {}, "loaded": []}


def main() -> None:
    pipe = answers_pipe()
    first = receive(sys.stdin.buffer)
    assert first is not None
    kind = Path(first[0]["ref"]).name
    if kind == "never-loads":
        time.sleep(600)
    send(pipe, {"do": "loaded", "about": ABOUT})
    if kind == "ends-at-once":
        os._exit(3)
    if kind != "stands-still":
        threading.Thread(target=beat, args=(pipe,), daemon=True).start()
    while (frame := receive(sys.stdin.buffer)) is not None:
        if kind == "ends-when-asked" and frame[0]["do"] == "query":
            os.abort()


def beat(pipe: object) -> None:
    while True:
        send(pipe, BEAT)  # type: ignore[arg-type]
        time.sleep(0.2)
