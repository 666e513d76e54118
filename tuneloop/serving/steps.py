"""The steps of admission that a server goes by now: a reload puts others in their place while it serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tuneloop.serving.admission import CALLER, Admission, Question, Submit, at_end, through
from tuneloop.serving.engine import AnswerStream, Engine

if TYPE_CHECKING:
    from starlette.requests import Request

log = logging.getLogger("tuneloop.serving")


class _Way:
    """Steps, the way through them to the engine, and how many requests are on it."""

    def __init__(self, steps: Sequence[Admission], engine: Engine) -> None:
        self.steps, self.submit, self.requests = tuple(steps), through(steps, engine), 0
        self.retired = False
        self._closing: asyncio.Task[None] | None = None

    def leave(self) -> None:
        """A request has ended; the last one closes steps that are no longer used."""
        self.requests -= 1
        if self.retired and not self.requests:
            self._close()

    async def close(self) -> None:
        await self._close()

    def _close(self) -> asyncio.Task[None]:
        self._closing = self._closing or asyncio.ensure_future(self._close_all())
        return self._closing

    async def _close_all(self) -> None:
        for step in self.steps:
            try:
                await step.close()
            except Exception:
                log.exception("a step of admission could not be closed")


class AdmissionPath:
    """The way of a request to the engine. A request under way keeps the steps that it has entered by."""

    def __init__(self, steps: Sequence[Admission], engine: Engine) -> None:
        self._engine = engine
        self._way = _Way(steps, engine)
        self._retired: list[_Way] = []

    def use(self, steps: Sequence[Admission]) -> None:
        """Put these in place of the present ones. A step of the same class takes over what its forerunner counted."""
        before = {type(step): step for step in self._way.steps}
        for step in steps:
            if type(step) in before:
                step.take_over(before[type(step)])
        self._way.retired = True
        self._retired.append(self._way)
        self._way = _Way(steps, self._engine)

    async def close_retired(self) -> None:
        """Close the steps of before by which no request is under way any more; the others are by their last one."""
        idle = [way for way in self._retired if not way.requests]
        self._retired = [way for way in self._retired if way.requests]
        for way in idle:
            await way.close()

    async def close(self) -> None:
        """Close all steps: the server ends."""
        retired, self._retired = self._retired, []
        for way in (*retired, self._way):
            await way.close()

    async def enter(self, request: Request) -> None:
        """Through each step before the body is read: a request of a client, or a line of a batch. Raises what a step
        refuses with."""
        way = self._way
        way.requests += 1
        at_end(request, way.leave)
        request.state.submit = way.submit
        caller = request.scope.get(CALLER)
        if caller is not None:
            request.state.caller = caller
        for step in way.steps:
            await (step.enter(request) if caller is None or not step.of_keys else step.readmit(request))

    async def submit(self, question: Question) -> AnswerStream:
        """Through each step to the engine. Raises what a step or the engine refuses with."""
        submit: Submit = getattr(getattr(question.request, "state", None), "submit", self._way.submit)
        return await submit(question)

    def gauges(self) -> Mapping[str, float]:
        """Figures of all steps for /metrics; of two with the same name the sum."""
        out: dict[str, float] = {}
        for step in self._way.steps:
            for name, figure in step.gauges().items():
                out[name] = out.get(name, 0.0) + figure
        return out
