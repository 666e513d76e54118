"""A model that judges whole texts for the guard: a classifier behind an address, or a run of tuneloop in a process of
its own. What it says decides; where it cannot be asked, the policy says whether a text passes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.safety.policy import ModelGuardPart
from tuneloop.serving.engine import Engine, Query

log = logging.getLogger("tuneloop.serving")
FAILED = "not judged"
"""Stands for a label where the model could not be asked and the policy is closed."""


class TextJudge(Protocol):
    """Judges a text."""

    async def scores(self, text: str) -> Mapping[str, float]:
        """Label -> probability. Raises a TuneloopError where it cannot be asked."""

    async def aclose(self) -> None:
        """Let go of what it holds."""

    def shut(self) -> None:
        """The same where no event loop runs, and it was asked nothing."""


class EndpointJudge:
    """A classifier at an address: /v1/classify as tuneloop has it, or /v1/moderations where no labels are named."""

    def __init__(self, part: ModelGuardPart) -> None:
        from tuneloop.serving.settings import read_key
        from tuneloop.serving.upstream.upstream import Upstream

        key = read_key(Path(part.key_file)) if part.key_file else ""
        self._part, self._upstream = part, Upstream(part.url or "", key, silence=part.seconds)

    async def scores(self, text: str) -> Mapping[str, float]:
        body = {"input": text} | ({"model": self._part.name} if self._part.name else {})
        if self._part.labels:
            reply = await self._upstream.post("/classify", body)
            labels = reply.get("scores") if isinstance(reply, dict) else None
        else:
            reply = await self._upstream.post("/moderations", body)
            labels = _moderated(reply)
        if not isinstance(labels, dict) or not all(isinstance(one, int | float) for one in labels.values()):
            raise self._upstream.odd(str(reply).encode())
        return labels

    async def aclose(self) -> None:
        await self._upstream.aclose()

    def shut(self) -> None:
        """Nothing: who was asked nothing has no connections."""


def _moderated(reply: Any) -> dict[str, float] | None:
    """What a reply of /v1/moderations flags, as scores.

    >>> _moderated({"results": [{"flagged": True, "categories": {"violence": True, "hate": False}}]})
    {'flagged': 1.0, 'violence': 1.0, 'hate': 0.0}
    """
    results = reply.get("results") if isinstance(reply, dict) else None
    if not isinstance(results, list) or not results or not isinstance(results[0], dict) or "flagged" not in results[0]:
        return None
    categories = results[0].get("categories")
    named = categories if isinstance(categories, dict) else {}
    return {"flagged": float(bool(results[0]["flagged"])), **{str(k): float(bool(v)) for k, v in named.items()}}


class EngineJudge:
    """A classifier that an engine serves: a run of tuneloop."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self._name = engine, name

    async def scores(self, text: str) -> Mapping[str, float]:
        stream = await self._engine.submit(Query("label", self._name, chat=[{"role": "user", "content": text}]))
        try:
            labels = [piece.labels async for piece in stream if piece.labels is not None]
        finally:
            await stream.aclose()
        if not labels:
            raise ServeError("TL-SERVE-FAILED", error="no label")
        return labels[0]

    async def aclose(self) -> None:
        await asyncio.to_thread(self.shut)

    def shut(self) -> None:
        self._engine.close()


class ModelGuard:
    """A judge, and what its labels mean."""

    def __init__(self, part: ModelGuardPart, judge: TextJudge) -> None:
        self.part, self._judge = part, judge

    @classmethod
    def load(cls, part: ModelGuardPart, workspace: Path) -> ModelGuard:
        """The judge that a policy names. Raises what its engine's maker raises, and TL-SERVE-UPSTREAM-URL."""
        if part.url:
            return cls(part, EndpointJudge(part))
        from tuneloop.serving.settings import served_name
        from tuneloop.serving.worker.torch_engine import TorchEngine

        ref = part.run or ""
        return cls(part, EngineJudge(TorchEngine(ref, workspace=workspace), served_name(ref)))

    async def refused(self, text: str) -> str:
        """The label for which a text is refused, "" where it passes."""
        if not text.strip():
            return ""
        try:
            async with asyncio.timeout(self.part.seconds):
                scores = await self._judge.scores(text)
        except (TuneloopError, TimeoutError) as error:
            log.warning("the model guard could not be asked: %s", getattr(error, "code", type(error).__name__))
            return FAILED if self.part.on_failure == "closed" else ""
        refused = self.part.labels or ["flagged"]
        return next((label for label in refused if scores.get(label, 0.0) >= self.part.threshold), "")

    async def aclose(self) -> None:
        """End its process, or its connections."""
        await self._judge.aclose()

    def shut(self) -> None:
        """The same where no event loop runs, and it was asked nothing."""
        self._judge.shut()
