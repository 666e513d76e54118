"""The step of admission that gives an answer which was computed before, and has equal questions computed once.

Only what would be answered alike again is answered from it: greedy requests, and those with a seed. A request may say
otherwise by the header Cache-Control: `no-cache` has it computed anew, `no-store` leaves the cache out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, TypeVar, cast

from tuneloop.recipe.serve import CacheBackend, CachePart, ServePart
from tuneloop.serving.access.fair_queue import hung_up
from tuneloop.serving.admission import Admission, Question, Submit, caller_of
from tuneloop.serving.cache.answer import CachedAnswer, is_finished
from tuneloop.serving.cache.answer_store import AnswerStore
from tuneloop.serving.cache.flight import Flight
from tuneloop.serving.cache.key import answer_key, is_deterministic, person_digest, tenant_digest
from tuneloop.serving.cache.memory import MemoryAnswers
from tuneloop.serving.cache.redis import RedisAnswers, redis_url
from tuneloop.serving.cache.sqlite import FILE, SqliteAnswers

if TYPE_CHECKING:
    from starlette.requests import Request

    from tuneloop.serving.engine import AnswerStream, Engine

log = logging.getLogger("tuneloop.serving")
Outcome = TypeVar("Outcome")
FORGOTTEN = Path("cache") / "forgotten.jsonl"
"""In a workspace: whom the caches in memory are to forget."""
MIB = 1 << 20
PAUSE_SECONDS = 1.0
"""How long a store that failed is left alone."""
GET_SECONDS = 2.0
"""How long a question waits for the store, whose file another process may have locked."""

STORES: dict[CacheBackend, Callable[[ServePart, Path], AnswerStore]] = {
    "memory": lambda serve, workspace: MemoryAnswers(serve.cache.size * MIB, workspace / FORGOTTEN),
    "sqlite": lambda serve, workspace: SqliteAnswers(workspace / FILE, serve.cache.size * MIB),
    "redis": lambda serve, workspace: RedisAnswers(redis_url(serve), serve.cache.size * MIB),
}
"""serve.cache.backend -> what makes its store; "off" has none."""


class Cache(Admission):
    """Answers from `store`, else by the next step. `policy` is the version of the safety policy.

    A store that fails costs nobody an answer: it is left alone for a second, and counted.
    """

    def __init__(
        self, store: AnswerStore, engine: Engine, settings: CachePart, *, policy: str = "", secret: bytes = b""
    ) -> None:
        self._store, self._engine, self._settings = store, engine, settings
        self._policy, self._secret = policy, secret
        self._flights: dict[str, Flight] = {}
        self._counts = dict.fromkeys(("hits", "misses", "shared", "bypassed", "stored", "errors"), 0)
        self._rests_until = 0.0
        self._unused: AnswerStore | None = None
        """Made with this step, which took over another one."""
        self._lent = False
        """Whether the step after this one has the store."""

    async def answer(self, question: Question, submit: Submit) -> AnswerStream:
        wishes = question.request.headers.get("cache-control", "").lower() if question.request is not None else ""
        identity = None
        if is_deterministic(question.query) and "no-store" not in wishes:
            identity = await self._engine.identity(question.query.model)
        if identity is None:
            self._counts["bypassed"] += 1
            return await submit(question)
        return await self._shared(question, submit, identity, "no-cache" in wishes)

    async def _shared(self, question: Question, submit: Submit, identity: str, anew: bool) -> AnswerStream:
        """The answer that is stored, or is under way already, or that is begun now."""
        caller = caller_of(question.request)
        key = answer_key(
            question.query,
            tenant=caller.tenant,
            identity=identity,
            policy=self._policy,
            namespace=self._settings.namespace,
        )
        flight = None if anew else self._flights.get(key)
        behind = bool(getattr(getattr(question.request, "state", None), "behind", False))
        if flight is None or (flight.behind and not behind and not flight.accepted):  # a batch's line waits for all
            flight = self._begun(key, question, submit, anew)
            flight.behind = behind
        else:
            self._counts["shared"] += 1
        stream = flight.join(person_digest(question.query.user or caller.name, self._secret))
        try:
            await _accepted(flight, question.request)
        except BaseException:
            await stream.aclose()
            raise
        return stream

    def _begun(self, key: str, question: Question, submit: Submit, anew: bool) -> Flight:
        # Others may wait for the answer when this client has gone: the steps behind are not to listen to it.
        own = SimpleNamespace(state=getattr(question.request, "state", None))
        question = replace(question, request=cast("Request", own))

        async def work(flight: Flight) -> None:
            if not anew and (answer := await self._stored(key, flight)):
                self._counts["hits"] += 1
                flight.pieces += answer.pieces
                flight.end(answer.prompt_tokens, answer.prompt_tokens)
                return
            self._counts["misses"] += 1
            await self._computed(key, question, submit, flight)

        def landed(flight: Flight) -> None:
            if self._flights.get(key) is flight:
                del self._flights[key]

        self._flights[key] = flight = Flight(work, landed)
        return flight

    async def _stored(self, key: str, flight: Flight) -> CachedAnswer | None:
        async def get() -> CachedAnswer | None:
            known: set[str] = set()
            octets = None
            while flight.people - known or not known:  # others may have joined meanwhile
                known = set(flight.people) or {""}
                octets = await self._store.get(key, known - {""})
            return None if octets is None else CachedAnswer.read(octets)

        async def in_time() -> CachedAnswer | None:
            async with asyncio.timeout(GET_SECONDS):
                return await get()

        return await self._tried(in_time)

    async def _computed(self, key: str, question: Question, submit: Submit, flight: Flight) -> None:
        began = time.time()
        stream = await submit(question)
        try:
            flight.accept(stream.prompt_tokens, stream.cached_tokens)
            async for piece in stream:
                flight.add(piece)
        finally:
            await stream.aclose()
        flight.end(stream.prompt_tokens, stream.cached_tokens)
        if is_finished(flight.pieces, question.query.n):
            octets = CachedAnswer(flight.prompt_tokens, tuple(flight.pieces)).as_bytes()

            async def put() -> None:
                noted = set(flight.people)
                await self._store.put(key, octets, noted, self._settings.ttl, began)
                self._counts["stored"] += 1
                while late := flight.people - noted:  # they have joined meanwhile
                    noted |= late
                    await self._store.get(key, late)

            await self._tried(put)

    async def _tried(self, work: Callable[[], Awaitable[Outcome]]) -> Outcome | None:
        """What the store says; None where it fails, or has a moment ago."""
        if time.monotonic() < self._rests_until:
            return None
        try:
            return await work()
        except Exception as error:
            self._counts["errors"] += 1
            self._rests_until = time.monotonic() + PAUSE_SECONDS
            log.warning("the answer cache fails: %s: %s", type(error).__name__, error)
            return None

    async def forget(self, *, tenant: str = "", user: str = "") -> int:
        """Remove the answers of a tenant, of a user, or of a user of a tenant; how many there were. Raises what the
        store raises."""
        return await self._store.forget(*meant(tenant, user, self._secret))

    def gauges(self) -> Mapping[str, float]:
        """Figures for /metrics."""
        counts = {f"cache_{name}_total": float(count) for name, count in self._counts.items()}
        return {**counts, "cache_answers": float(self._store.count), "cache_bytes": float(self._store.size)}

    def take_over(self, before: Admission) -> None:
        """Go on with the answers and counts of `before`, where both have the same settings of the store."""
        if isinstance(before, Cache):
            self._counts, self._flights = before._counts, before._flights
            if self._settings.backend == before._settings.backend and self._settings.size == before._settings.size:
                self._store, self._unused, before._lent = before._store, self._store, True

    async def close(self) -> None:
        if self._unused is not None:
            await self._unused.close()
        if not self._lent:
            await self._store.close()


async def _accepted(flight: Flight, request: Request) -> None:
    """Wait until the question was accepted. Raises what it is refused with, and what tells that the client has gone."""
    if flight.accepted:
        return
    waiting = asyncio.ensure_future(flight.until_accepted())
    gone = asyncio.ensure_future(hung_up(request))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            from starlette.requests import ClientDisconnect

            raise ClientDisconnect
        waiting.result()
    finally:
        waiting.cancel()
        gone.cancel()


def meant(tenant: str, user: str, secret: bytes = b"") -> tuple[str, str]:
    """The digests of a tenant and a user; "" is every one. Raises ValueError where both are "": that would be all."""
    if not tenant and not user:
        raise ValueError("whom to forget?")
    return tenant_digest(tenant) if tenant else "", person_digest(user, secret)


def cache_steps(
    settings: ServePart, engine: Engine, workspace: Path, *, policy: str = "", secret: bytes = b""
) -> list[Admission]:
    """The cache of a server, where its recipe has one. Raises TL-SERVE-CACHE, TL-MACHINE-EXTRA."""
    if settings.cache.backend == "off":
        return []
    store = STORES[settings.cache.backend](settings, workspace)
    return [Cache(store, engine, settings.cache, policy=policy, secret=secret)]


async def forget(settings: ServePart, workspace: Path, *, tenant: str = "", user: str = "", secret: bytes = b"") -> int:
    """Remove the cached answers that a tenant or a user has asked for, from outside the server; how many there were.

    Answers in a server's memory are removed before its next answer and are not counted here. Of every kind of store
    that the workspace has, whatever the recipe says today. Raises what the stores raise.
    """
    stores = [STORES["memory"](settings, workspace)]
    if (workspace / FILE).is_file():
        stores.append(STORES["sqlite"](settings, workspace))
    if redis_url(settings):
        stores.append(STORES["redis"](settings, workspace))
    removed = 0
    for store in stores:
        try:
            removed += await store.forget(*meant(tenant, user, secret))
        finally:
            await store.close()
    return removed
