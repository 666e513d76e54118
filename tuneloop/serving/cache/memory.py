"""Answers in the memory of one process, those that were used last."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tuneloop.serving.cache.answer_store import FORGOTTEN_SECONDS, OVERHEAD, Forgotten


@dataclass(slots=True)
class _Stored:
    answer: bytes
    ends: float
    people: set[str]


class MemoryAnswers:
    """An AnswerStore of at most `most` bytes.

    `forgotten` is the file by which other processes of the workspace say who is to be forgotten: it is looked at before
    each answer, which costs a microsecond.
    """

    def __init__(self, most: int, forgotten: Path) -> None:
        self._most, self._file = most, ForgottenFile(forgotten)
        self._answers: OrderedDict[str, _Stored] = OrderedDict()
        self.size = 0

    @property
    def count(self) -> int:
        return len(self._answers)

    async def get(self, key: str, people: Iterable[str]) -> bytes | None:
        self._catch_up()
        stored = self._answers.get(key)
        if stored is None:
            return None
        if stored.ends <= time.monotonic():
            self._drop(key)
            return None
        self._answers.move_to_end(key)
        stored.people.update(people)
        return stored.answer

    async def put(self, key: str, answer: bytes, people: Iterable[str], seconds: float, began: float) -> None:
        self._catch_up()
        those = set(people)
        self._drop(key)
        needed = len(answer) + OVERHEAD
        if needed > self._most or any(one.covers(key, those, began) for one in self._file.recent):
            return
        while self.size + needed > self._most:
            self._drop(next(iter(self._answers)))
        self._answers[key] = _Stored(answer, time.monotonic() + seconds, those)
        self.size += needed

    async def forget(self, tenant: str, person: str) -> int:
        self._file.add(Forgotten(tenant, person, time.time()))
        return self._catch_up()

    async def close(self) -> None:
        self._answers.clear()
        self.size = 0

    def _catch_up(self) -> int:
        """Remove the answers of those who are forgotten by now; how many."""
        before = self.count
        for one in self._file.news():
            for key in [key for key, stored in self._answers.items() if one.covers(key, stored.people)]:
                self._drop(key)
        return before - self.count

    def _drop(self, key: str) -> None:
        stored = self._answers.pop(key, None)
        if stored is not None:
            self.size -= len(stored.answer) + OVERHEAD


class ForgottenFile:
    """Lines of JSON, each somebody to forget, which every process of a workspace appends to and reads."""

    def __init__(self, path: Path) -> None:
        self._path, self._seen = path, 0
        self.recent: list[Forgotten] = []
        """Those of the last hour."""
        self._seen = self._length()

    def add(self, one: Forgotten) -> None:
        """Raises OSError where the file cannot be written."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"tenant": one.tenant, "person": one.person, "at": one.at})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def news(self) -> list[Forgotten]:
        """Those that were added since it was last looked at."""
        length = self._length()
        if length == self._seen:
            return []
        start, self._seen = (0 if length < self._seen else self._seen), length
        with self._path.open("rb") as file:
            file.seek(start)
            lines = file.read(length - start).splitlines()
        news = [Forgotten(**json.loads(line)) for line in lines if line.strip()]
        self.recent = [one for one in [*self.recent, *news] if one.at > time.time() - FORGOTTEN_SECONDS]
        return news

    def _length(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0
