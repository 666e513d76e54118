"""Ctrl-C, politely: the first one lets the step finish and a checkpoint be written, a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

ECHO = 0.1
"""Seconds within which a second signal is the first one by another way."""


class Interrupt:
    """A context in which SIGINT and SIGTERM only set `requested`. Does nothing outside the main thread."""

    def __init__(self, say: Callable[[], None]) -> None:
        self.requested = False
        self.at = 0.0
        self.say = say
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        # Ctrl-C under torchrun is a SIGINT and then a SIGTERM, and a signal to a whole group comes once more by way of
        # the parent process: only who presses it again is in a hurry.
        if self.requested and number == signal.SIGINT and time.monotonic() - self.at > ECHO:
            raise KeyboardInterrupt
        if self.requested:
            return
        self.requested, self.at = True, time.monotonic()
        self.say()
