"""The steps between a request and its answer, each a class: the key first, its limits, and the queue last; a guard and
a cache have their place between the two.

A step may refuse before the body is read (`enter`), refuse when the question is known, and wrap the answer or give
another (`answer`). To refuse is to raise a ServeError with its HTTP status: `ServeError("TL-SERVE-FULL", status=503,
seconds=3)`; `seconds` becomes the header Retry-After.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tuneloop.serving.access.gcra import RateLimits
from tuneloop.serving.engine import AnswerStream, Engine, Query

if TYPE_CHECKING:
    from starlette.requests import Request


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request: what its key says. `id` is the key's public part, "" where the server knows no keys."""

    id: str = ""
    name: str = ""
    scopes: frozenset[str] = frozenset({"*"})
    tenant: str = ""
    """Whose answers, cache and records are apart from all others': the key's name."""
    limits: Callable[[RateLimits], RateLimits] | None = None
    """The limits of the recipe -> those of this key; None where it has none of its own."""


NOBODY = Caller()
CALLER = "tuneloop.caller"
"""Where the scope of a request of the server's own says for whom it is; nothing that a client sends gets there."""


def caller_of(request: Request) -> Caller:
    """Who sends a request, as the first step has found it."""
    caller: Caller = getattr(getattr(request, "state", None), "caller", NOBODY)
    return caller


def answer_headers(request: Request) -> dict[str, str]:
    """The headers that will go with the answer to a request, or with its refusal; a step adds its own."""
    headers: dict[str, str] = request.scope.setdefault("state", {}).setdefault("headers", {})
    return headers


def at_end(request: Request, work: Callable[[], object]) -> None:
    """Have something done when a request is over: answered, refused, or left by its client."""
    request.scope.setdefault("state", {}).setdefault("at_end", []).append(work)


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What a request asks of the engine, with the request that it came in."""

    request: Request
    query: Query


Submit = Callable[[Question], Awaitable[AnswerStream]]


class Admission:
    """One step. What it does not override lets everything through."""

    of_keys = False
    """Whether `enter` finds out who sends a request: lines of batches, of which that is known, pass `readmit`."""

    async def enter(self, request: Request) -> None:
        """Before the body is read, on every route but those in `scopes.OPEN`."""

    async def readmit(self, request: Request) -> None:
        """In place of `enter`, where it is known who sends a request and their key was looked at long ago."""

    async def answer(self, question: Question, submit: Submit) -> AnswerStream:
        """Before and around the answer; `submit` goes on with the next step, and at the end to the engine."""
        return await submit(question)

    def take_over(self, before: Admission) -> None:
        """Go on with what `before`, the step of the same class before a reload, has counted or holds. What is taken
        over, `before` no longer closes; requests that have entered by it may still use it."""

    def gauges(self) -> Mapping[str, float]:
        """Figures for /metrics: Prometheus name without prefix -> its value now (counters end in "_total")."""
        return {}

    async def close(self) -> None:
        """Let go of what the step holds: the server ends, or has other steps and no request is under way by this."""


def through(steps: Sequence[Admission], engine: Engine) -> Submit:
    """The way of a question through the steps, the first one outermost, to the engine."""

    async def to_engine(question: Question) -> AnswerStream:
        return await engine.submit(question.query)

    submit: Submit = to_engine
    for step in reversed(steps):
        submit = partial(step.answer, submit=submit)
    return submit
