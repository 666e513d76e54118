"""Progress of augmentation: rows derived and time left, reported after 2 s and then every 10 s."""

from __future__ import annotations

import time
from collections.abc import Callable

from tuneloop.base.language import t

FIRST, SECONDS = 2.0, 10.0
"""Seconds until the first line about the time, and between two lines."""


class Progress:
    """Progress of one method: `quota` rows wanted from at most `parents` rows. `about` formats seconds for a reader."""

    def __init__(
        self, method: str, quota: int, parents: int, say: Callable[[str], None], about: Callable[[float], str]
    ) -> None:
        self.method, self.quota, self.parents, self._say, self._about = method, quota, parents, say, about
        self.derived = self.tried = 0
        self._batch, self._calls, self._call, self._most = 0, 1, 0, 0
        self._began = self._last = time.monotonic()
        self._next = FIRST
        say(t("{method}: up to {n} rows, from {of} training rows", method=method, n=quota, of=parents))

    def batch(self, parents: int, calls: int, most: int = 0) -> None:
        """Begin a batch of `parents`, for which a model is called `calls` times.

        `most` is how many rows they may give, where that is known; 0 where it is not.
        """
        self._batch, self._calls, self._call, self._most = parents, calls, -1, most

    def call(self) -> None:
        """Begin the next call."""
        self._call = min(self._call + 1, self._calls - 1)

    def within(self, share: float) -> None:
        """Report the share of the call that is done, from 0 to 1."""
        self._tell(self.tried + self._batch * (max(self._call, 0) + share) / self._calls)

    def ended(self, derived: int) -> None:
        """End the batch, which gave `derived` rows."""
        self.derived, self.tried, self._batch = self.derived + derived, self.tried + self._batch, 0
        self._most = 0
        self._tell(self.tried)

    def left(self, done: float) -> float:
        """Seconds until the quota is reached, or until there is no parent left, after `done` parents."""
        batch = self._batch if self._most else 0
        gives = (self.derived + self._most + 1) / (self.tried + batch + 1)
        wanted = min(max((self.quota - self.derived) / gives, self._batch), self.parents - self.tried)
        return max(0.0, self.tried + wanted - done) * (time.monotonic() - self._began) / max(done, 1e-6)

    def _tell(self, done: float) -> None:
        now = time.monotonic()
        if done <= 0 or now - self._last < self._next or self.derived >= self.quota:
            return
        self._last, self._next = now, SECONDS
        facts = {"method": self.method, "n": self.derived, "of": self.quota, "time": self._about(self.left(done))}
        self._say(t("{method}: {n} of {of} rows, about {time} left", **facts))
