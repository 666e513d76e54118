"""A model that does not write, in the engine's process: a classifier, a reward model, an encoder. Its requests are
answered one after the other, those of an encoder several at once."""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.base.language import t
from tuneloop.inference.classifier import Classifier
from tuneloop.inference.embedder import Embedder
from tuneloop.inference.scorer import Scorer
from tuneloop.model.vocabulary import require_rows
from tuneloop.serving.engine import Piece, Purpose, Query
from tuneloop.serving.wire import error_frame, piece_frame
from tuneloop.serving.worker.writing import Events

log = logging.getLogger("tuneloop.serving")
TOGETHER = 64
"""Texts of an encoder's requests that are embedded at once."""


@dataclass(frozen=True, slots=True, eq=False)
class SingleJob:
    """A query whose tokens were counted."""

    number: int
    query: Query
    prompt_tokens: int
    ids: list[int]
    """Of a text to embed."""


class Single:
    """What answers the queries of such a model. `accept` may be called in another thread than all else."""

    def __init__(self, model: Classifier | Scorer | Embedder) -> None:
        self._model = model
        # A fast tokenizer must not be used by two threads at once.
        self._door = copy.copy(model)
        self._door.tokenizer = copy.deepcopy(model.tokenizer)
        self._waiting: deque[SingleJob] = deque()
        self._labels = tuple(getattr(model, "labels", ()))
        embeds = isinstance(model, Embedder)
        self._tasks: tuple[Purpose, ...] = ("vector",) if embeds else ("label", "chat") if self._labels else ("chat",)

    @property
    def about(self) -> dict[str, Any]:
        """What the server must know of it."""
        context = self._model.context
        return {"context": context, "labels": self._labels, "tasks": self._tasks, "capacity": 1, "shared": None}

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def gauges(self) -> dict[str, float]:
        """Figures of what waits."""
        return {"requests_waiting": float(len(self._waiting))}

    def loaded(self) -> list[str]:
        """No adapter ever is."""
        return []

    def is_slow(self, query: Query, source: dict[str, Any] | None) -> bool:
        """Whether accepting a query takes long."""
        return False

    def accept(self, number: int, query: Query, source: dict[str, Any] | None) -> SingleJob:
        """The query as a job. Raises what is wrong with it."""
        if query.purpose == "label" and not self._labels:
            raise ServeError("TL-SERVE-NO-LABELS", where="model", param="model", model=query.model)
        if query.purpose not in self._tasks:
            raise ServeError("TL-SERVE-UNSUPPORTED", where="model", param="model", got=query.model)
        param, ids = "messages" if query.purpose == "chat" else "input", list[int]()
        if isinstance(self._door, Embedder):
            ids = self._ids(query.prompt)
            tokens = len(ids)
        else:
            tokens = self._door.count(query.chat)
        if tokens > self._model.context:
            context = self._model.context
            raise ServeError("TL-SERVE-CONTEXT", where=param, param=param, tokens=tokens, context=context)
        return SingleJob(number, query, tokens, ids)

    def _ids(self, prompt: str | tuple[int, ...]) -> list[int]:
        assert isinstance(self._door, Embedder)
        ids = self._door.ids(prompt)
        try:
            if not ids or min(ids) < 0:
                raise ServeError("TL-SERVE-REQUEST", error=t("there is no text to embed"))
            require_rows(self._model.model, self._door.tokenizer, [ids])
        except ServeError as error:
            error.where = error.facts["param"] = "input"
            raise
        return ids

    def begin(self, job: SingleJob) -> None:
        """Take a job up."""
        self._waiting.append(job)

    def cancel(self, number: int) -> None:
        """Nobody listens any more."""
        self._waiting = deque(job for job in self._waiting if job.number != number)

    def refuse_waiting(self) -> Events:
        """End what has not begun: the server is closing."""
        refused, self._waiting = [job.number for job in self._waiting], deque()
        return [[number, {"error": error_frame(ServeError("TL-SERVE-CLOSING", status=503))}] for number in refused]

    def step(self) -> Events:
        """The answers to those that have waited longest: one piece a choice."""
        if not isinstance(self._model, Embedder):
            return self._answered(self._waiting.popleft())
        jobs = [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]
        events = _guarded(jobs, partial(self._vectors, jobs))
        if len(jobs) > 1 and any("error" in frame for _, frame in events):  # one of them may be the reason
            return [event for job in jobs for event in _guarded([job], partial(self._vectors, [job]))]
        return events

    def _vectors(self, jobs: list[SingleJob]) -> Events:
        assert isinstance(self._model, Embedder)
        vectors = self._model.embed([job.ids for job in jobs])
        frames = [piece_frame(Piece(finish="stop", vector=vector.tolist())) for vector in vectors]
        return [[job.number, frame] for job, frame in zip(jobs, frames, strict=True)]

    def _answered(self, job: SingleJob) -> Events:
        model = self._model
        assert not isinstance(model, Embedder)

        def answered() -> Events:
            reply = model.answer([job.query.chat])[0]
            pieces = [
                Piece(choice, reply.text, finish=reply.finish, tokens=reply.tokens, labels=reply.scores)
                for choice in range(job.query.n)
            ]
            return [[job.number, piece_frame(piece)] for piece in pieces]

        return _guarded([job], answered)


def _guarded(jobs: list[SingleJob], make: Callable[[], Events]) -> Events:
    """The events of jobs; whatever fails fails them and nothing else."""
    try:
        return make()
    except TuneloopError as error:
        failure = error
    except Exception as error:
        log.exception("an answer failed")
        failure = ServeError("TL-SERVE-FAILED", error=f"{type(error).__name__}: {error}"[:300])
    return [[job.number, {"error": error_frame(failure)}] for job in jobs]
