"""The steps of admission that a server goes by now: a reload puts others in their place while it serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tuneloop.serving.admission import Admission, Question, Submit, through
from tuneloop.serving.engine import AnswerStream, Engine

if TYPE_CHECKING:
    from starlette.requests import Request


class Steps:
    """The way of a request to the engine. A request under way keeps the steps that it has entered by."""

    def __init__(self, steps: Sequence[Admission], engine: Engine) -> None:
        self._engine = engine
        self._steps: tuple[Admission, ...] = tuple(steps)
        self._submit: Submit = through(self._steps, engine)

    def use(self, steps: Sequence[Admission]) -> None:
        """Put these in place of the present ones. A step of the same class takes over what its forerunner counted."""
        before = {type(step): step for step in self._steps}
        for step in steps:
            if type(step) in before:
                step.take_over(before[type(step)])
        self._steps, self._submit = tuple(steps), through(steps, self._engine)

    async def enter(self, request: Request) -> None:
        """Through each step before the body is read. Raises what a step refuses with."""
        request.state.submit = self._submit
        for step in self._steps:
            await step.enter(request)

    async def submit(self, question: Question) -> AnswerStream:
        """Through each step to the engine. Raises what a step or the engine refuses with."""
        submit: Submit = getattr(question.request.state, "submit", self._submit)
        return await submit(question)

    def gauges(self) -> Mapping[str, float]:
        """Figures of all steps for /metrics; of two with the same name the sum."""
        out: dict[str, float] = {}
        for step in self._steps:
            for name, figure in step.gauges().items():
                out[name] = out.get(name, 0.0) + figure
        return out
