"""Things to be done for others, in order and in a thread of their own, so that what is slow delays no step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Outbox:
    """Does what it is given, one after the other, in a thread of its own.

    At most `limit` actions wait; `put` drops what comes beyond them. What an action raises goes to `failed`, in that
    thread, and the next action is done. The thread ends with the program, whatever it waits for.
    """

    def __init__(self, name: str, failed: Callable[[Exception], None], limit: int = 1000) -> None:
        self._failed = failed
        self._actions: queue.Queue[Callable[[], None] | None] = queue.Queue(limit)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, action: Callable[[], None]) -> bool:
        """Have something done; False where too much waits already."""
        try:
            self._actions.put_nowait(action)
        except queue.Full:
            return False
        return True

    def wait(self, seconds: float) -> bool:
        """Whether all that was put before is done within `seconds`."""
        done = threading.Event()
        return self.put(done.set) and done.wait(seconds)

    def close(self, seconds: float) -> bool:
        """End after what waits, if that is done within `seconds`; whether it was. Nothing may be put after it."""
        try:
            self._actions.put(None, timeout=max(0.0, seconds))
        except queue.Full:
            return False
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (action := self._actions.get()) is not None:
            try:
                action()
            except Exception as error:  # whatever a library or a server does must not end the run
                self._failed(error)
