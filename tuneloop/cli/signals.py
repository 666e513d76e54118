"""SIGTERM and SIGHUP end a command as Ctrl-C does, so that what is half-made is taken away before the process ends."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn


class Ended(KeyboardInterrupt):
    """A signal to end. `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def end_as_ctrl_c() -> None:
    """From now on SIGTERM and SIGHUP raise `Ended` in the main thread, where they would have ended the process.

    A signal that the caller has set to be ignored (nohup) stays so. Children that were forked end as they always did.
    """
    own = os.getpid()

    def raised(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own:
            raise Ended(number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, raised)


def leave(stop: KeyboardInterrupt) -> NoReturn:
    """End with the status that shells give to a process which a signal has ended: 130 for Ctrl-C, 143 for SIGTERM."""
    raise SystemExit(128 + (stop.number if isinstance(stop, Ended) else signal.SIGINT))
