"""A model that does not write, in the engine's process: a classifier, a reward model. One request after the other."""

from __future__ import annotations

import copy
import logging
from collections import deque
from dataclasses import dataclass
from typing import Any

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.inference.classifier import Classifier
from tuneloop.inference.scorer import Scorer
from tuneloop.serving.engine import Piece, Query
from tuneloop.serving.wire import error_frame, piece_frame
from tuneloop.serving.writing import Events

log = logging.getLogger("tuneloop.serving")


@dataclass(frozen=True, slots=True, eq=False)
class JudgingJob:
    """A query whose tokens were counted."""

    number: int
    query: Query
    prompt_tokens: int


class Judging:
    """What answers the queries of a classifier or reward model. `accept` belongs to one thread, all else to another."""

    def __init__(self, answerer: Classifier | Scorer) -> None:
        self._answerer = answerer
        self._door = copy.copy(answerer)
        self._door.tokenizer = copy.deepcopy(answerer.tokenizer)
        self._waiting: deque[JudgingJob] = deque()
        self._labels = tuple(getattr(answerer, "labels", ()))

    @property
    def about(self) -> dict[str, Any]:
        """What the server must know of it."""
        tasks = ("label", "chat") if self._labels else ("chat",)
        return {"context": self._answerer.context, "labels": self._labels, "tasks": tasks, "capacity": 1}

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def gauges(self) -> dict[str, float]:
        return {"requests_waiting": float(len(self._waiting))}

    def accept(self, number: int, query: Query) -> JudgingJob:
        """The query as a job. Raises what is wrong with it."""
        if query.task == "label" and not self._labels:
            raise ServeError("TL-SERVE-NO-LABELS", where="model", param="model", model=query.model)
        if query.task in {"text", "vector"}:
            raise ServeError("TL-SERVE-UNSUPPORTED", where="model", param="model", got=query.model)
        param = "input" if query.task == "label" else "messages"
        tokens, context = self._door.count(query.chat), self._answerer.context
        if tokens > context:
            raise ServeError("TL-SERVE-CONTEXT", where=param, param=param, tokens=tokens, context=context)
        return JudgingJob(number, query, tokens)

    def begin(self, job: JudgingJob) -> None:
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
        """The answer to the request that has waited longest: one piece a choice."""
        job = self._waiting.popleft()
        try:
            reply = self._answerer.answer([job.query.chat])[0]
        except TuneloopError as error:
            return [[job.number, {"error": error_frame(error)}]]
        except Exception as error:
            log.exception("an answer failed")
            failure = ServeError("TL-SERVE-FAILED", error=f"{type(error).__name__}: {error}"[:300])
            return [[job.number, {"error": error_frame(failure)}]]
        pieces = [
            Piece(choice, reply.text, finish=reply.finish, tokens=reply.tokens, labels=reply.scores)
            for choice in range(job.query.n)
        ]
        return [[job.number, piece_frame(piece)] for piece in pieces]
