"""One upstream of a proxy as it stands: its models, whether it answers, and how many answers it is writing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from tuneloop.base.errors import ServeError
from tuneloop.base.language import t
from tuneloop.serving.engine import ModelEntry, Purpose
from tuneloop.serving.upstream.upstream import Upstream

log = logging.getLogger("tuneloop.serving")

UNTOLD = 1 << 20
"""Context in tokens of a server that does not name its own: it refuses itself what is too long."""
CHECK_SECONDS = 10.0
"""Between two health checks of an upstream that answers."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds after which one that does not answer is asked again: twice as long each time."""
_CONTEXTS = ("max_model_len", "context_length", "context_window")
MOST_MODELS = 10_000


class Backend:
    """`watch` asks it for its models again and again; `fail` says that it did not answer a request."""

    def __init__(self, upstream: Upstream, notice: Callable[[str], None] = log.warning) -> None:
        self.upstream = upstream
        self.models: dict[str, ModelEntry] = {}
        """By name, as they were listed last."""
        self.fault: ServeError | None = None
        """Why it does not answer; None where it does, or was not asked yet."""
        self.asked_at = 0.0
        self.streams = 0
        self.used_at = 0.0
        self.failures = 0
        self.known = asyncio.Event()
        """Set once it was asked for the first time."""
        self._early = asyncio.Event()
        self._notice = notice

    @property
    def healthy(self) -> bool:
        return self.known.is_set() and self.fault is None

    @property
    def wait(self) -> float:
        """Seconds until the next check."""
        return min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self.failures - 1)) if self.failures else CHECK_SECONDS

    @property
    def due(self) -> bool:
        """Whether a request may have it asked before its next check: it did not answer, some time ago."""
        return self.fault is not None and time.monotonic() > self.asked_at + FIRST_WAIT

    async def watch(self) -> None:
        """Ask it for its models, until cancelled."""
        while True:
            await self.check()
            self._early.clear()
            try:
                async with asyncio.timeout(self.wait):
                    await self._early.wait()
            except TimeoutError:
                pass
            else:
                await asyncio.sleep(self.wait)

    async def check(self) -> None:
        """Ask it for its models once."""
        self.asked_at = time.monotonic()
        try:
            listed = await self.upstream.listed()
        except ServeError as error:
            self.fail(error)
        else:
            if self.fault is not None:
                self._notice(t("{url} answers again", url=self.upstream.url))
            self.models = {one["id"]: model_entry(one) for one in listed[:MOST_MODELS] if one["id"]}
            self.fault, self.failures = None, 0
        finally:
            self.known.set()

    def fail(self, error: ServeError) -> None:
        """It does not answer; it is asked again sooner than otherwise."""
        if self.fault is None:
            self._notice(t("{url} does not answer: {error}", url=self.upstream.url, error=error.what))
            self._early.set()
        self.fault = error
        self.failures += 1


def model_entry(listed: Mapping[str, Any]) -> ModelEntry:
    """A model in a list of models, by the words of vLLM, llama.cpp, OpenRouter and tuneloop.

    >>> model_entry({"id": "m", "max_model_len": 512, "parent": "base"})
    ModelEntry(name='m', context=512, base='base', labels=(), tasks=('chat', 'text', 'vector'), loaded=True)
    """
    meta = listed.get("meta")
    lengths = [listed.get(name) for name in _CONTEXTS]
    lengths += [meta.get(name) for name in ("n_ctx", "n_ctx_train")] if isinstance(meta, dict) else []
    context = next((n for n in lengths if type(n) is int and n > 0), UNTOLD)
    base = listed.get("parent") or listed.get("base")
    tasks: tuple[Purpose, ...] = ("chat", "text", "vector")
    return ModelEntry(str(listed["id"]), context, base if isinstance(base, str) else None, tasks=tasks)
