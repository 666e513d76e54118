"""An answerer that says how far it is: thousands of answers on a slow machine are no reason for silence."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tuneloop.base.language import t
from tuneloop.base.records import Reply
from tuneloop.inference.generate import Answerer


class Counted:
    """Answers as `answerer` does and tells `say` now and then how many of `total` answers are written."""

    def __init__(self, answerer: Answerer, total: int, say: Callable[[str], None], *, interval: float = 5.0) -> None:
        self.answerer, self.total, self.say, self.interval = answerer, total, say, interval
        self.done = 0
        self.last_report = time.perf_counter()

    @property
    def context(self) -> int:
        return self.answerer.context

    def count(self, chat: list[dict[str, Any]], **offered: Any) -> int:
        """Prompt tokens of a chat."""
        return self.answerer.count(chat, **offered)

    def answer(
        self, chats: list[list[dict[str, Any]]], *, max_new_tokens: int = 64, batch_size: int = 8, **offered: Any
    ) -> list[Reply]:
        """One reply a chat, in order."""
        before = self.done

        def hear(written: int) -> None:
            self.done = before + written
            if time.perf_counter() - self.last_report >= self.interval:
                self.last_report = time.perf_counter()
                self.say(t("  {n} of {total} answers", n=self.done, total=self.total))

        return self.answerer.answer(
            chats, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=hear, **offered
        )
