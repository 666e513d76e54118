"""The engine that asks other servers: one or several with OpenAI's API, the least busy one that has the model."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from tuneloop.base.environment import environment
from tuneloop.base.errors import ServeError
from tuneloop.base.language import listed, t
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.engine import AnswerStream, ModelEntry, Query
from tuneloop.serving.identity import identity_of
from tuneloop.serving.settings import read_key
from tuneloop.serving.upstream.backend import Backend, log
from tuneloop.serving.upstream.upstream import Upstream
from tuneloop.serving.upstream.upstream_answer import AnswerReader, OddAnswer, vector_piece
from tuneloop.serving.upstream.upstream_body import body_of
from tuneloop.serving.upstream.upstream_stream import OpenStreams, UpstreamStream, VectorStream

AT_ONCE = 256
"""Requests that one upstream is thought to answer at the same time (vLLM's own default); it has a queue of its own."""


class ProxyEngine:
    """An Engine over servers with OpenAI's API. A request goes to the least busy one that answers and has its model.

    It is sent again, to each other one at most once, where nothing was done yet: nobody listens, or it was refused with
    502, 503 or 429. Once an answer has begun, nothing is sent twice.
    """

    def __init__(self, upstreams: Sequence[Upstream], notice: Callable[[str], None] = log.warning) -> None:
        if not upstreams:
            raise ServeError("TL-SERVE-UPSTREAM-URL", where="serve.upstreams", error=t("no upstream is named"))
        self._backends = [Backend(upstream, notice) for upstream in upstreams]
        self._streams = OpenStreams()
        self._watching: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting = self._answered = self._retried = self._failed = 0
        self._seconds = 1.0
        self.open = True

    @property
    def ready(self) -> bool:
        self._watch()
        return self.open and any(backend.healthy for backend in self._backends)

    @property
    def pending(self) -> int:
        return self._waiting + len(self._streams)

    @property
    def capacity(self) -> int:
        return AT_ONCE * max(1, sum(backend.healthy for backend in self._backends))

    @property
    def retry_after(self) -> int:
        if any(backend.healthy for backend in self._backends):
            return max(1, round(self._seconds))
        return max(1, round(min(backend.wait for backend in self._backends)))

    async def models(self) -> list[ModelEntry]:
        """Those of all upstreams that answer; where none does, those that were listed before. Raises TL-SERVE-DOWN."""
        await self._known()
        up = [backend for backend in self._backends if backend.healthy] or self._backends
        models = _merged(backend.models for backend in up)
        if not models:
            self._down()
        return models

    async def identity(self, model: str) -> str | None:
        """Of the upstreams' addresses and of what they list: which weights stand behind a name they do not say."""
        await self._known()
        listed = [one for backend in self._backends if (one := backend.models.get(model))]
        urls = sorted(backend.upstream.url for backend in self._backends)
        known = sorted({(one.context, one.base or "") for one in listed})
        return identity_of("proxy", urls, model, known) if listed else None

    async def submit(self, query: Query) -> AnswerStream:
        if not self.open:
            raise ServeError("TL-SERVE-CLOSING")
        path, body = body_of(query)
        self._waiting += 1
        try:
            await self._known()
            return await self._first(query, path, body)
        finally:
            self._waiting -= 1

    def gauges(self) -> Mapping[str, float]:
        return {
            "upstreams": len(self._backends),
            "upstreams_healthy": sum(backend.healthy for backend in self._backends),
            "upstream_answers_total": self._answered,
            "upstream_retries_total": self._retried,
            "upstream_errors_total": self._failed,
        }

    def close(self, grace: float = 0.0) -> None:
        self.open = False
        self._streams.close(grace)
        loop, self._loop = self._loop, None
        if loop is not None and loop.is_running():
            with suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(self.shut(), loop).result(timeout=10.0)

    async def shut(self) -> None:
        """End the health checks and close the connections; on the engine's own loop."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        for backend in self._backends:
            await backend.upstream.aclose()

    def _watch(self) -> None:
        """Begin with the health checks, on the event loop that is running."""
        if self.open and self._loop is None:
            try:
                self._loop = asyncio.get_running_loop()
            except RuntimeError:  # asked from elsewhere: the next request begins with it
                return
            self._watching = [self._loop.create_task(backend.watch()) for backend in self._backends]

    async def _known(self) -> None:
        """Wait until an upstream has answered its first health check, or all have failed it."""
        self._watch()
        first = [
            asyncio.ensure_future(backend.known.wait()) for backend in self._backends if not backend.known.is_set()
        ]
        while first and not any(backend.healthy for backend in self._backends):
            _, rest = await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            first = list(rest)
        for waiting in first:
            waiting.cancel()

    async def _first(self, query: Query, path: str, body: Mapping[str, object]) -> AnswerStream:
        """The answer of the first upstream that takes the request."""
        candidates = self._candidates(query.model)
        if not candidates:  # one may be back by now
            await asyncio.gather(*(backend.check() for backend in self._backends if backend.due))
            candidates = self._candidates(query.model) or self._none(query.model)
        for place, backend in enumerate(candidates):
            backend.streams += 1
            backend.used_at = time.monotonic()
            try:
                return await self._ask(backend, query, path, dict(body))
            except BaseException as error:
                backend.streams -= 1
                if not isinstance(error, ServeError):
                    raise
                self._failed += error.facts.get("status", 500) >= 429
                if error.facts.get("unreachable"):
                    backend.fail(error)
                if not error.facts.get("again"):
                    raise
                if place + 1 == len(candidates):
                    raise self._last(error) from error
                self._retried += 1
        raise AssertionError("unreachable")

    def _candidates(self, model: str) -> list[Backend]:
        """The upstreams that answer and have the model, the least busy one first."""
        having = [backend for backend in self._backends if backend.healthy and model in backend.models]
        return sorted(having, key=lambda backend: (backend.streams, backend.used_at))

    async def _ask(self, backend: Backend, query: Query, path: str, body: dict[str, object]) -> AnswerStream:
        began = time.monotonic()
        if query.purpose == "vector":
            try:
                piece, tokens = vector_piece(await backend.upstream.post(path, body))
            except OddAnswer as error:
                words = t("an answer of unknown form: {got}", got=str(error))
                raise backend.upstream.fault(words) from error
            self._ended(backend, began)
            return VectorStream(piece, tokens)
        events = await backend.upstream.stream(path, body)
        stream = UpstreamStream(events, AnswerReader(query), self._streams)
        stream.released = lambda: self._ended(backend, began)
        return stream

    def _ended(self, backend: Backend, began: float) -> None:
        backend.streams -= 1
        self._answered += 1
        self._seconds = 0.8 * self._seconds + 0.2 * (time.monotonic() - began)

    def _last(self, error: ServeError) -> ServeError:
        """The error of the last upstream that was asked: one that nobody listens at is down, for the client."""
        if not error.facts.get("unreachable"):
            return error
        return self._none_answers(error.where)

    def _none_answers(self, where: str = "") -> ServeError:
        return ServeError(
            "TL-SERVE-DOWN", where=where, status=503, error=t("no upstream answers"), seconds=self.retry_after
        )

    def _down(self) -> NoReturn:
        raise self._none_answers()

    def _none(self, model: str) -> NoReturn:
        """No upstream that answers has the model: is it one that is down, or is there no such model?"""
        models = [one.name for one in _merged(backend.models for backend in self._backends)]
        if model in models or not models:
            self._down()
        near = difflib.get_close_matches(model, models, 5, 0.4) or models[:5]
        raise ServeError("TL-SERVE-MODEL", where="model", param="model", got=model[:200], known=listed(near))


def _merged(models: Iterable[Mapping[str, ModelEntry]]) -> list[ModelEntry]:
    """Each name once, in the order of the upstreams."""
    return list({name: model for one in reversed(list(models)) for name, model in one.items()}.values())


def upstream_models(settings: ServePart, say: Callable[[str], None]) -> list[str]:
    """The models that the upstreams list now, before anything is served; `say` hears which does not answer."""

    async def ask(engine: ProxyEngine) -> list[str]:
        try:
            return [model.name for model in await engine.models()]
        except ServeError:
            return []
        finally:
            await engine.shut()

    return asyncio.run(ask(proxy_engine("", settings, Path(), say)))


def proxy_engine(ref: str | Path, settings: ServePart, workspace: Path, say: Callable[[str], None]) -> ProxyEngine:
    """The engine over the upstreams of the settings; `ref` says nothing here: the models are the upstreams' own.

    Raises TL-SERVE-UPSTREAM-URL, TL-SERVE-KEY-FILE.
    """
    key = environment().upstream_key
    if settings.upstream_key_file:
        key = read_key(Path(settings.upstream_key_file))
    return ProxyEngine([Upstream(url, key) for url in dict.fromkeys(settings.upstreams)], say)
