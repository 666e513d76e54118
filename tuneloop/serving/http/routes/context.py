"""What the routes of a server share."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, ParamSpec, TypeVar

from fastapi import Request

from tuneloop.base.errors import RunError, ServeError
from tuneloop.improvement.archive import beside
from tuneloop.serving.admission import Question, Submit
from tuneloop.serving.answers.several import submit_all
from tuneloop.serving.batches.batch_runner import BatchRunner
from tuneloop.serving.engine import AnswerStream, Engine, ModelEntry, Purpose, Query
from tuneloop.serving.http.errors import Places
from tuneloop.serving.http.metrics import ServerMetrics
from tuneloop.serving.http.observer import Answered
from tuneloop.serving.record_keeper import RecordKeeper

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger("tuneloop.serving")


async def in_store(work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """What a call of the store says, in a thread of its own.

    Raises TL-SERVE-STORE where the store is away: a database's own words are not for clients.
    """
    try:
        return await beside(work, *args, **options)
    except RunError as error:
        log.error("the store cannot be used: %s", error.code)
        raise ServeError("TL-SERVE-STORE", status=503, seconds=5) from error


@dataclass(frozen=True, slots=True, eq=False)
class ServerContext:
    """The engine, the way to it, and what is counted."""

    engine: Engine
    submit: Submit
    metrics: ServerMetrics
    keeper: RecordKeeper | None = None
    runner: BatchRunner | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    async def ask(self, request: Request, queries: list[Query], places: Places) -> AnswerStream:
        """The answers to the queries of a request, as one stream. Raises what the steps and the engine refuse with;
        the fields that such an error is about are put into OpenAI's shape by `places`."""
        request.state.places = places
        request.state.queries = queries
        questions = [Question(request, query) for query in queries]
        stream = await submit_all(self.submit, questions, self.engine.capacity)
        # What the guard has blocked no engine took: its model's name may be any text.
        model = "" if getattr(request.state, "unlisted", False) else queries[0].model
        return self.metrics.watch(stream, model, getattr(request.state, "answered", None) or Answered())

    def keeper_of(self, name: Literal["feedback", "batches"]) -> RecordKeeper:
        """The keeper of this server. Raises TL-SERVE-OFF where the server takes no such thing."""
        keeper = self.keeper
        if keeper is None or not (keeper.records.feedback if name == "feedback" else keeper.batches.enabled):
            raise ServeError("TL-SERVE-OFF", status=404, name=name)
        return keeper

    async def model_for(self, task: Purpose, name: str) -> ModelEntry | None:
        """The model of a name, None for one that the engine does not list: it refuses it itself, or knows an alias.

        Raises TL-SERVE-TASK for a model that cannot do the task.
        """
        model = next((one for one in await self.engine.models() if one.name == name), None)
        if model is not None and task not in model.tasks:
            raise ServeError("TL-SERVE-TASK", where="model", param="model", model=name, tasks=", ".join(model.tasks))
        return model
