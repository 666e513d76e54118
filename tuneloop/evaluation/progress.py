"""An answerer that says how far it is and begins no answer anew that is on the disk: thousands of answers on a slow
machine are no reason for silence, and a crash none to write them again.

Answers are written in parts of like prompts, always the same ones, and a part is on the disk whole or not at all: so
what is written after a crash is, to the last bit, what would have been written without it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tuneloop.base.duration import about
from tuneloop.base.language import t
from tuneloop.base.records import Reply
from tuneloop.data.batches.pack import Batch
from tuneloop.inference.batch import MOST
from tuneloop.inference.fingerprint import fingerprint_of
from tuneloop.inference.generate import Answerer
from tuneloop.runs.journal import Journal

INTERVAL = 5.0
"""Seconds between two lines of progress."""
PARTS = 4
"""Batches of a part."""
ANSWERS_FILE = "answers.jsonl"
"""In a run's folder while it is evaluated: the answers that are written."""


def counted(
    batches: Iterable[Batch], total: int, say: Callable[[str], None], *, interval: float = INTERVAL
) -> Iterator[Batch]:
    """The batches, and now and then to `say` how many of `total` samples have gone through the model."""
    done, last = 0, time.perf_counter()
    for batch in batches:
        yield batch
        done += len(batch.members)
        if time.perf_counter() - last >= interval:
            last = time.perf_counter()
            say(t("  {n} of {total} losses measured", n=done, total=total))


class Counted:
    """Answers as `answerer` does, and tells `say` now and then how many of `total` answers there are.

    With a `journal`, answers lie there, and what lies there is not written again. An answer is known by all that
    changes it: the model's weights and logits, the prompt's tokens, and the options.
    """

    def __init__(
        self,
        answerer: Answerer,
        total: int,
        say: Callable[[str], None],
        *,
        interval: float = INTERVAL,
        journal: Journal | None = None,
    ) -> None:
        self.answerer, self.total, self.say, self.interval, self.journal = answerer, total, say, interval, journal
        self.done = self.written = 0
        self.began = self.last_report = time.perf_counter()
        self._model = fingerprint_of(answerer.model) if journal else ""
        self._stored = {str(line["key"]): line for line in journal.lines() if "key" in line} if journal else {}

    @property
    def context(self) -> int:
        return self.answerer.context

    def count(self, chat: list[dict[str, Any]], **offered: Any) -> int:
        """Prompt tokens of a chat."""
        return self.answerer.count(chat, **offered)

    def answer(
        self,
        chats: list[list[dict[str, Any]]],
        *,
        max_new_tokens: int = 64,
        batch_size: int = MOST,
        tools: Sequence[Sequence[Any]] = (),
        thinking: bool | None = None,
        **options: Any,
    ) -> list[Reply]:
        """One reply a chat, in order."""
        self.total = max(self.total, self.done + len(chats))
        given: dict[str, Any] = {} if thinking is None else {"thinking": thinking}
        settings = {"max_new_tokens": max_new_tokens, **options}
        if self.journal is None:
            return self._answered(chats, {**settings, **given, **({"tools": tools} if tools else {})}, batch_size)
        offered = tools or [()] * len(chats)
        prompts = [self.answerer.prompt(chat, own, thinking) for chat, own in zip(chats, offered, strict=True)]
        order = sorted(range(len(chats)), key=lambda n: -len(prompts[n]))
        keys = [self._key(prompt, settings) for prompt in prompts]
        size = PARTS * batch_size
        replies: dict[int, Reply] = {}
        for start in range(0, len(order), size):
            part = order[start : start + size]
            stored = [self._reply(keys[n]) for n in part]
            known = [one for one in stored if one is not None]
            if len(known) == len(part):
                self.done += len(part)
            else:
                own = {"tools": [offered[n] for n in part]} if tools else {}
                known = self._answered([chats[n] for n in part], {**settings, **given, **own}, batch_size)
                self._store([keys[n] for n in part], known)
            replies |= dict(zip(part, known, strict=True))
        return [replies[n] for n in range(len(chats))]

    def _answered(self, chats: list[list[dict[str, Any]]], settings: dict[str, Any], batch_size: int) -> list[Reply]:
        before, written = self.done, self.written

        def hear(count: int) -> None:
            self.done, self.written = before + count, written + count
            self._report()

        return self.answerer.answer(chats, batch_size=batch_size, progress=hear, **settings)

    def _report(self) -> None:
        now = time.perf_counter()
        if now - self.last_report < self.interval:
            return
        self.last_report = now
        rate = self.written / max(now - self.began, 1e-9)
        self.say(
            t(
                "  {n} of {total} answers, {rate:.2g} a second, about {left} left",
                n=self.done,
                total=self.total,
                rate=rate,
                left=about((self.total - self.done) / rate),
            )
        )

    def _key(self, prompt: list[int], settings: dict[str, Any]) -> str:
        facts = [self._model, settings, sorted(self.answerer.stops), self.answerer.penalty, prompt]
        return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:24]

    def _reply(self, key: str) -> Reply | None:
        try:
            return Reply(**self._stored[key]["reply"])
        except (KeyError, TypeError):
            return None

    def _store(self, keys: Sequence[str], replies: Sequence[Reply]) -> None:
        if self.journal is None:
            return
        lines = [{"key": key, "reply": asdict(reply)} for key, reply in zip(keys, replies, strict=True)]
        self._stored |= dict(zip(keys, lines, strict=True))
        self.journal.write_all(lines)


def journal_in(run: Path | None) -> Journal | None:
    """The journal of a run's answers; none where the model is of no run."""
    return None if run is None else Journal(run / ANSWERS_FILE)
