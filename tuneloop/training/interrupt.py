"""Ctrl-C, politely: the first one lets the step finish and a checkpoint be written, a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self


class Interrupt:
    """A context in which SIGINT and SIGTERM only set `requested`. Does nothing outside the main thread."""

    def __init__(self, say: Callable[[], None]) -> None:
        self.requested = False
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
        # Ctrl-C under torchrun is a SIGINT and then a SIGTERM: only who presses it again is in a hurry.
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.requested:
            return
        self.requested = True
        self.say()
