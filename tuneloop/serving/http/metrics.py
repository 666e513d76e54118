"""Figures of the server for Prometheus (extra `serve`): requests, tokens, times, and what the engine tells of itself.

Names of models come from the engine, never from a request that it did not take, so that no client can make new ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tuneloop.base.optional import need
from tuneloop.serving.admission import Admission
from tuneloop.serving.engine import AnswerStream, Engine, Piece, Query

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = "tuneloop_"
FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN_TOKENS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class ServerMetrics:
    """Counts. Each server has its own registry, so that two in one process do not mix.

    Without prometheus-client nothing is counted, and `text` raises TL-MACHINE-EXTRA.
    """

    def __init__(self, engine: Engine, steps: Sequence[Admission] = ()) -> None:
        try:
            client: Any = import_module("prometheus_client")
        except ImportError:
            client = None
        self._client = client
        if client is None:
            return
        self._registry = client.CollectorRegistry()
        self._registry.register(_EngineFigures(engine, steps))
        ours = {"registry": self._registry}
        self._requests = client.Counter(
            f"{PREFIX}requests", "Requests that were answered, by route and HTTP status.", ["route", "status"], **ours
        )
        self._seconds = client.Histogram(
            f"{PREFIX}request_seconds", "From a request to the end of its answer.", ["route"], buckets=WHOLE, **ours
        )
        self._tokens = {
            kind: client.Counter(f"{PREFIX}{kind}_tokens", words, ["model"], **ours)
            for kind, words in {
                "prompt": "Tokens of prompts that were taken.",
                "cached": "Tokens of prompts whose keys and values were at hand.",
                "answer": "Tokens that were written.",
            }.items()
        }
        self._first = client.Histogram(
            f"{PREFIX}first_token_seconds", "From a request to the first token.", ["model"], buckets=FIRST_TOKEN, **ours
        )
        self._between = client.Histogram(
            f"{PREFIX}between_tokens_seconds", "Between two pieces.", ["model"], buckets=BETWEEN_TOKENS, **ours
        )

    def text(self) -> bytes:
        """All figures in Prometheus' text format. Raises TL-MACHINE-EXTRA."""
        return bytes(need("prometheus_client", extra="serve").generate_latest(self._registry))

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        if self._client is not None:
            self._requests.labels(route, str(status)).inc()
            self._seconds.labels(route).observe(seconds)

    def watch(self, stream: AnswerStream, query: Query, began: float) -> AnswerStream:
        """The same stream, with its times and tokens counted; `began` is when the request came (time.monotonic)."""
        return stream if self._client is None else WatchedStream(stream, self, query.model, began)

    def first_token(self, model: str, seconds: float) -> None:
        self._first.labels(model).observe(seconds)

    def between_tokens(self, model: str, seconds: float) -> None:
        self._between.labels(model).observe(seconds)

    def tokens(self, model: str, prompt: int, cached: int, answer: int) -> None:
        for kind, count in (("prompt", prompt), ("cached", cached), ("answer", answer)):
            self._tokens[kind].labels(model).inc(count)


class WatchedStream:
    """An AnswerStream that tells a server's metrics of itself."""

    def __init__(self, stream: AnswerStream, metrics: ServerMetrics, model: str, began: float) -> None:
        self._stream, self._metrics, self._model = stream, metrics, model
        self._last, self._first, self._tokens, self._ended = began, True, 0, False

    @property
    def prompt_tokens(self) -> int:
        return self._stream.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        return self._stream.cached_tokens

    def __aiter__(self) -> WatchedStream:
        return self

    async def __anext__(self) -> Piece:
        piece = await anext(self._stream)
        now = time.monotonic()
        (self._metrics.first_token if self._first else self._metrics.between_tokens)(self._model, now - self._last)
        self._last, self._first = now, False
        self._tokens += piece.tokens
        return piece

    async def aclose(self) -> None:
        if not self._ended:
            self._ended = True
            self._metrics.tokens(self._model, self.prompt_tokens, self.cached_tokens, self._tokens)
        await self._stream.aclose()


class _EngineFigures:
    """A collector that asks the engine and the steps of admission at each scrape."""

    def __init__(self, engine: Engine, steps: Sequence[Admission]) -> None:
        self._engine, self._steps = engine, steps

    def collect(self) -> Iterator[Any]:
        core = import_module("prometheus_client.core")
        own: dict[str, float] = {
            "pending": self._engine.pending,
            "capacity": self._engine.capacity,
            "ready": float(self._engine.ready),
        }
        for step in self._steps:
            own |= step.gauges()
        for name, figure in {**own, **self._engine.gauges()}.items():
            family = core.CounterMetricFamily if name.endswith("_total") else core.GaugeMetricFamily
            own_name = name if name in own else f"engine_{name.removeprefix('engine_')}"
            yield family(
                PREFIX + own_name.removesuffix("_total"), WORDS.get(name, "Of the engine."), value=float(figure)
            )


WORDS = {
    "pending": "Requests that are with the engine and have not ended, those that are being answered counted.",
    "capacity": "How many requests are answered at the same time.",
    "ready": "1 where a request would be answered now.",
    "cache_hits_total": "Requests that were answered from the cache.",
    "cache_misses_total": "Requests that were computed, and whose answer the cache may store.",
    "cache_shared_total": "Requests that waited for the answer to an equal one that was under way.",
    "cache_bypassed_total": "Requests that the cache has nothing to do with.",
    "cache_stored_total": "Answers that were stored.",
    "cache_errors_total": "Times that the store of the cache failed.",
    "cache_answers": "Answers in the store, when one was last stored.",
    "cache_bytes": "Bytes of the answers in the store, when one was last stored.",
}


class RequestCounter:
    """Counts each request by its route and status; paths that nobody serves are one route."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "name", "") or "other"
            self._metrics.request(route, status, time.monotonic() - began)
