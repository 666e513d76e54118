"""SIGTERM and SIGHUP end a command as Ctrl-C does, so that what is half-made is taken away before the process ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Ended(KeyboardInterrupt):
    """A signal to end. `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """In the block SIGTERM and SIGHUP raise `Ended` in the main thread, where they would have ended the process.

    A signal that the caller has set to be ignored (nohup) stays so. Children that were forked end as they always did.
    """
    own = os.getpid()

    def raised(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own:
            raise Ended(number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    numbers = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]  # Windows has no SIGHUP
    mine = threading.current_thread() is threading.main_thread()
    handled = [n for n in numbers if mine and n is not None and signal.getsignal(n) == signal.SIG_DFL]
    for number in handled:
        signal.signal(number, raised)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def status(stop: KeyboardInterrupt) -> int:
    """The exit status that shells give to a process which a signal has ended.

    >>> status(KeyboardInterrupt()), status(Ended(15))
    (130, 143)
    """
    return 128 + (stop.number if isinstance(stop, Ended) else signal.SIGINT)
