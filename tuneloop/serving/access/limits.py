"""The step of the limits: what a key may ask in a minute, and how much of it is left."""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tuneloop.base.environment import environment
from tuneloop.base.errors import ServeError
from tuneloop.base.language import t
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.access.gcra import LEASE, Limiter, RateLimits
from tuneloop.serving.access.memory_limits import MemoryLimits
from tuneloop.serving.access.metered_stream import MeteredStream, prompt_tokens
from tuneloop.serving.access.rate_headers import rate_headers
from tuneloop.serving.access.redis_limits import RedisDown, RedisLimits, redis_client
from tuneloop.serving.access.scopes import ASKING
from tuneloop.serving.admission import Admission, Question, Submit, answer_headers, at_end, caller_of
from tuneloop.serving.engine import AnswerStream, Query

if TYPE_CHECKING:
    from starlette.requests import Request

log = logging.getLogger("tuneloop.serving")
RENEW_SECONDS = LEASE / 1000 / 3
"""How often an answer under way says that it is."""


def limits_step(settings: ServePart) -> KeyLimits:
    """The step of these settings: in Redis where one is named, else in memory. Raises what `redis_client` raises."""
    part = settings.limits
    usual = RateLimits(part.requests or 0, part.tokens or 0, part.streams or 0)
    url = settings.redis or environment().redis
    shared = RedisLimits(redis_client(url), url=url) if url else None
    return KeyLimits(usual, settings.max_new_tokens, shared, refuse=part.without_redis == "closed")


@dataclass(slots=True, eq=False)
class Allowance:
    """What a request has taken, until it is known what it used."""

    caller: str
    limits: RateLimits
    limiter: Limiter | None = None
    """Where it was taken; None while nothing is."""
    lease: str = ""
    reserved: int = 0
    """Tokens."""
    open: int = 0
    """Questions that have not been answered to their end."""
    longest: int | None = None
    """Tokens of an answer whose request names no length."""
    asking: bool = False
    settled: bool = False
    streams: set[MeteredStream] = field(default_factory=set)


class KeyLimits(Admission):
    """Takes a request, the tokens it may need and a place among the answers under way, all at once or nothing; gives
    back the tokens that were not used.

    What a prompt and the longest answer may need is reserved: the prompt's tokens by an estimate, until the engine has
    counted them. `shared` is asked first where there is one; while it is down, everything is refused (`refuse`), or
    each process counts by itself.
    """

    def __init__(
        self, usual: RateLimits, longest: int, shared: RedisLimits | None = None, *, refuse: bool = True
    ) -> None:
        self._usual, self._longest, self._shared, self._refuse = usual, longest, shared, refuse
        self._memory = MemoryLimits()
        self._refusals: Counter[str] = Counter()
        self._under_way: dict[str, Allowance] = {}
        """Lease -> its request."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._down = self._lent = False
        self._renewing: asyncio.Task[None] | None = None

    async def enter(self, request: Request) -> None:
        caller = caller_of(request)
        limits = self._usual if caller.limits is None else caller.limits(self._usual)
        if not limits:
            return
        allowance = Allowance(caller.id, limits)
        request.state.allowance = allowance
        at_end(request, lambda: self._begin(self._settle(allowance)))
        if request.method == "POST" and request.scope["route"].path in ASKING:
            allowance.asking = True  # all is taken at once when the question is known
        else:
            await self._take(request, allowance, 0, lease=False)

    async def answer(self, question: Question, submit: Submit) -> AnswerStream:
        allowance: Allowance | None = getattr(getattr(question.request, "state", None), "allowance", None)
        if allowance is None:
            return await submit(question)
        if allowance.limiter is None:
            queries: Sequence[Query] = getattr(question.request.state, "queries", [question.query])
            need, allowance.longest = self._need(queries, allowance.limits.tokens)
            await self._take(question.request, allowance, need, lease=True)
            allowance.open = len(queries)
        query = question.query
        if query.max_new_tokens is None and allowance.longest is not None:
            question = replace(question, query=replace(query, max_new_tokens=allowance.longest))
        stream = MeteredStream(await submit(question), prompt_tokens(query), partial(self._ended, allowance))
        allowance.streams.add(stream)
        return stream

    def _need(self, queries: Sequence[Query], limit: int) -> tuple[int, int | None]:
        """Tokens that a request may use, and how long an answer without a length may become where that would be more
        than a minute has. Raises TL-SERVE-LIMIT-SIZE for what no wait makes possible."""
        prompts = sum(map(prompt_tokens, queries))
        named = sum(query.n * query.max_new_tokens for query in queries if query.max_new_tokens is not None)
        unnamed = sum(
            query.n for query in queries if query.max_new_tokens is None and query.purpose in ("chat", "text")
        )
        need = prompts + named + unnamed * self._longest
        if not limit or need <= limit:
            return need, None
        longest = (limit - prompts - named) // unnamed if unnamed else 0
        if longest < 1:
            self._refusals["tokens"] += 1
            raise ServeError("TL-SERVE-LIMIT-SIZE", status=429, wanted=prompts + named + unnamed, limit=limit)
        return prompts + named + unnamed * longest, longest

    async def _take(self, request: Request, allowance: Allowance, tokens: int, *, lease: bool) -> None:
        """Raises TL-SERVE-LIMIT, TL-SERVE-LIMITER."""
        name = uuid.uuid4().hex if lease and allowance.limits.streams else ""
        for limiter in self._limiters():
            try:
                verdict = await limiter.take(allowance.caller, allowance.limits, 1, tokens, name)
            except RedisDown as error:
                self._note(error)
                continue
            if limiter is self._shared:
                self._note(None)
            break
        else:
            raise ServeError("TL-SERVE-LIMITER", status=503, seconds=1)
        answer_headers(request).update(rate_headers(allowance.limits, verdict))
        allowance.limiter = limiter
        if verdict.refused:
            allowance.settled = True
            self._refusals[verdict.refused] += 1
            seconds = max(1, math.ceil(verdict.wait / 1000))
            most = getattr(allowance.limits, verdict.refused)
            raise ServeError("TL-SERVE-LIMIT", status=429, seconds=seconds, limit=_limit_words(verdict.refused, most))
        allowance.reserved, allowance.lease = tokens, name
        if name:
            self._under_way[name] = allowance
            if self._renewing is None or self._renewing.done():
                self._renewing = self._begin(self._renew())

    def _limiters(self) -> list[Limiter]:
        """Those to ask, in order, until one answers."""
        shared: list[Limiter] = [self._shared] if self._shared is not None else []
        return shared if shared and self._refuse else [*shared, self._memory]

    def _note(self, error: RedisDown | None) -> None:
        """Log once that Redis has gone, and that it is back."""
        if error is not None and not self._down:
            log.warning("the Redis of the limits does not answer: %s", error)
        elif error is None and self._down:
            log.warning("the Redis of the limits answers again")
        self._down = error is not None

    async def _ended(self, allowance: Allowance) -> None:
        """A question was answered to its end."""
        allowance.open -= 1
        if allowance.open <= 0:
            settling = self._begin(self._settle(allowance))
            if allowance.lease:  # before the client reads the end: then it may ask the next one
                await asyncio.shield(settling)

    async def _settle(self, allowance: Allowance) -> None:
        """Give back what was not used. A request that got as far as no question counts as one all the same."""
        if allowance.settled:
            return
        allowance.settled = True
        self._under_way.pop(allowance.lease, None)
        requests = 0 if allowance.limiter is not None or not allowance.asking else 1
        tokens = sum(stream.used for stream in allowance.streams) - allowance.reserved
        if not (requests or tokens or allowance.lease):
            return
        limiter = allowance.limiter or self._limiters()[0]
        try:
            await limiter.settle(allowance.caller, allowance.limits, requests, tokens, allowance.lease)
        except RedisDown as error:
            self._note(error)

    async def _renew(self) -> None:
        """While answers are under way: keep them counted."""
        while self._under_way:
            await asyncio.sleep(RENEW_SECONDS)
            for lease, allowance in list(self._under_way.items()):
                try:
                    if allowance.limiter is not None and not allowance.settled:
                        await allowance.limiter.renew(allowance.caller, lease)
                except RedisDown as error:
                    self._note(error)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def take_over(self, before: Admission) -> None:
        """Go on with what was counted under the settings before."""
        if not isinstance(before, KeyLimits):
            return
        self._memory, self._refusals = before._memory, before._refusals
        if self._shared is not None and before._shared is not None and self._shared.url == before._shared.url:
            self._shared, self._down, before._lent = before._shared, before._down, True

    async def close(self) -> None:
        """Wait for what is being given back, then let the Redis go."""
        if self._renewing is not None:
            self._renewing.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._shared is not None and not self._lent:
            await self._shared.close()

    def gauges(self) -> Mapping[str, float]:
        """Refusals by what was used up, and whether the Redis answers."""
        refusals = {f"limited_{kind}_total": float(self._refusals[kind]) for kind in ("requests", "tokens", "streams")}
        return refusals if self._shared is None else refusals | {"limits_redis_up": float(not self._down)}


def _limit_words(kind: str, most: int) -> str:
    if kind == "requests":
        return t("{n} requests a minute", n=most)
    if kind == "tokens":
        return t("{n} tokens a minute", n=most)
    return t("{n} answers at the same time", n=most)
