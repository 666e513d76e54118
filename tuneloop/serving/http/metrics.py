"""Figures of the server for Prometheus (extra `serve`): requests, tokens, times, and what the engine tells of itself.

Names of models come from the engine, never from a request that it did not take, so that no client can make new ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from tuneloop.base.environment import environment
from tuneloop.base.optional import need
from tuneloop.serving.engine import AnswerStream, Engine
from tuneloop.serving.http.observer import Answered, WatchedStream

PREFIX = "tuneloop_"
FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN_TOKENS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class ServerMetrics:
    """Counts. Each server has its own registry, so that two in one process do not mix.

    Without prometheus-client nothing is counted, and `text` raises TL-MACHINE-EXTRA.
    """

    def __init__(self, engine: Engine, gauges: Callable[[], Mapping[str, float]] = dict) -> None:
        """`gauges` are the figures of the steps of admission, asked at each scrape."""
        try:
            client: Any = import_module("prometheus_client")
        except ImportError:
            client = None
        self._client = client
        if client is None:
            return
        self._registry = client.CollectorRegistry()
        self._live = client.CollectorRegistry()
        for registry in (self._registry, self._live):
            registry.register(_Figures(engine, gauges))
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

        self._refusals = client.Counter(
            f"{PREFIX}refusals", "Requests and answers that ended with an error, by its code.", ["code"], **ours
        )
        self._finishes = client.Counter(
            f"{PREFIX}answers", "Answers that have ended, by what ended them.", ["model", "finish"], **ours
        )

    def text(self) -> bytes:
        """All figures in Prometheus' text format; where several workers share a folder for them (the variable
        PROMETHEUS_MULTIPROC_DIR), their sums. Raises TL-MACHINE-EXTRA."""
        client = need("prometheus_client", extra="serve")
        if not (folder := environment().metrics_folder):
            return bytes(client.generate_latest(self._registry))
        shared = client.CollectorRegistry()
        import_module("prometheus_client.multiprocess").MultiProcessCollector(shared, path=folder)
        return bytes(client.generate_latest(shared)) + bytes(client.generate_latest(self._live))

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        if self._client is not None:
            self._requests.labels(route, str(status)).inc()
            self._seconds.labels(route).observe(seconds)

    def watch(self, stream: AnswerStream, model: str, answered: Answered) -> AnswerStream:
        """The same stream, with its times and tokens counted and noted in `answered`. `model` is "" for a name that the
        engine does not list."""
        return WatchedStream(stream, self, model, answered)

    def refused(self, code: str) -> None:
        """A request or the rest of its answer was refused with an error."""
        if self._client is not None:
            self._refusals.labels(code).inc()

    def finished(self, model: str, finish: str) -> None:
        """An answer has ended by itself."""
        if self._client is not None:
            self._finishes.labels(model, finish).inc()

    def first_token(self, model: str, seconds: float) -> None:
        if self._client is not None:
            self._first.labels(model).observe(seconds)

    def between_tokens(self, model: str, seconds: float) -> None:
        if self._client is not None:
            self._between.labels(model).observe(seconds)

    def tokens(self, model: str, prompt: int, cached: int, answer: int) -> None:
        if self._client is None:
            return
        for kind, count in (("prompt", prompt), ("cached", cached), ("answer", answer)):
            self._tokens[kind].labels(model).inc(count)


class _Figures:
    """A collector that asks the engine and the steps at each scrape. Where several workers share their counts, its
    figures are those of the one that was asked, which is named by its process."""

    def __init__(self, engine: Engine, gauges: Callable[[], Mapping[str, float]]) -> None:
        self._engine, self._gauges = engine, gauges

    def collect(self) -> Iterator[Any]:
        core = import_module("prometheus_client.core")
        engine, steps = self._engine, self._gauges()
        own = {
            "pending": engine.pending,
            "capacity": engine.capacity,
            "waiting": max(0, engine.pending - engine.capacity) + steps.get("queue_waiting", 0),
            "ready": float(engine.ready),
        }
        named = {f"engine_{name.removeprefix('engine_')}": figure for name, figure in engine.gauges().items()}
        label, mine = (["worker"], [str(os.getpid())]) if environment().metrics_folder else ([], [])
        for name, figure in {**named, **steps, **own}.items():
            kind = core.CounterMetricFamily if name.endswith("_total") else core.GaugeMetricFamily
            words = WORDS.get(name, "Of the engine." if name in named else "Of a step of admission.")
            family = kind(PREFIX + name.removesuffix("_total"), words, labels=label)
            family.add_metric(mine, float(figure))
            yield family


WORDS = {
    "pending": "Requests that are with the engine and have not ended, those that are being answered counted.",
    "waiting": "Requests that wait for a place in the engine.",
    "queue_waiting": "Of these, those in the queue of this server.",
    "queue_running": "Requests that the queue has let through and that have not ended.",
    "queue_refused_total": "Requests that were refused because the queue was full.",
    "limited_requests_total": "Refusals because a key had used up its requests a minute.",
    "limited_tokens_total": "Refusals because a key had used up its tokens a minute.",
    "limited_streams_total": "Refusals because a key had as many answers under way as it may.",
    "limits_redis_up": "1 where the Redis of the limits answers.",
    "guard_input_block_total": "Findings in questions that were blocked.",
    "guard_input_mask_total": "Findings in questions that were masked.",
    "guard_input_log_total": "Findings in questions that passed.",
    "guard_output_block_total": "Findings in answers that were blocked.",
    "guard_output_mask_total": "Findings in answers that were masked.",
    "guard_output_log_total": "Findings in answers that passed.",
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
