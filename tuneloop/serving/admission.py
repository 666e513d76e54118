"""The steps between a request and its answer, each a class: the key and the queue; limits, a guard, a cache have their
place between the two.

A step may refuse before the body is read (`enter`), refuse when the question is known, and wrap the answer or give
another (`answer`). To refuse is to raise a ServeError with its HTTP status: `ServeError("TL-SERVE-FULL", status=503,
seconds=3)`; `seconds` becomes the header Retry-After.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tuneloop.base.errors import ServeError
from tuneloop.recipe.schema import ServePart
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


NOBODY = Caller()
CALLER = "tuneloop.caller"
"""Where the scope of a request of the server's own says for whom it is; nothing that a client sends gets there."""


def caller_of(request: Request) -> Caller:
    """Who sends a request, as the first step has found it."""
    caller: Caller = getattr(request.state, "caller", NOBODY)
    return caller


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
        """Before the body is read, on every route but those in `api.PUBLIC`."""

    async def readmit(self, request: Request) -> None:
        """In place of `enter`, where it is known who sends a request and their key was looked at long ago."""

    async def answer(self, question: Question, submit: Submit) -> AnswerStream:
        """Before and around the answer; `submit` goes on with the next step, and at the end to the engine."""
        return await submit(question)


class Key(Admission):
    """Wants "Authorization: Bearer <key>". Raises TL-SERVE-KEY-EMPTY for an empty key, which would be none."""

    of_keys = True

    def __init__(self, key: str) -> None:
        if not key.strip():
            raise ServeError("TL-SERVE-KEY-EMPTY", where="api_key")
        self._digest = _digest(key.strip().encode())

    async def enter(self, request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        # Digests have one length, so that the time of the comparison tells nothing of the key's.
        # Headers are bytes, which the framework shows as Latin-1: back to bytes they may be any letters of UTF-8.
        given = _digest(key.strip().encode("latin-1", "replace"))
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._digest):
            raise ServeError("TL-SERVE-KEY", status=401)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class Queue(Admission):
    """Lets `length` requests wait for a place in the engine; the next one is refused. The last step: what passes it is
    submitted at once, before another request is looked at."""

    def __init__(self, engine: Engine, length: int) -> None:
        self._engine, self._length = engine, length
        self._entering = 0

    async def answer(self, question: Question, submit: Submit) -> AnswerStream:
        # What is on its way to the engine counts as if it had arrived: it may take some time to be accepted.
        pending = max(self._engine.pending, self._entering)
        if self._engine.open and pending >= self._engine.capacity + self._length:
            waiting = pending - self._engine.capacity
            raise ServeError("TL-SERVE-FULL", status=503, waiting=waiting, seconds=self._engine.retry_after)
        self._entering += 1
        try:
            return await submit(question)
        finally:
            self._entering -= 1


def admission_steps(
    settings: ServePart, engine: Engine, api_key: str | None, records: Sequence[Admission] = ()
) -> list[Admission]:
    """The steps of a server, in the order in which a request passes them; `records` keep what was answered."""
    key = [] if api_key is None else [Key(api_key)]
    return [*key, *records, Queue(engine, settings.queue)]


async def enter_all(steps: Sequence[Admission], request: Request) -> None:
    """Have a request pass the steps before its body is read: one of a client, or a line of a batch."""
    caller = request.scope.get(CALLER)
    if caller is not None:
        request.state.caller = caller
    for step in steps:
        await (step.enter(request) if caller is None or not step.of_keys else step.readmit(request))


def through(steps: Sequence[Admission], engine: Engine) -> Submit:
    """The way of a question through the steps, the first one outermost, to the engine."""

    async def to_engine(question: Question) -> AnswerStream:
        return await engine.submit(question.query)

    submit: Submit = to_engine
    for step in reversed(steps):
        submit = partial(step.answer, submit=submit)
    return submit
