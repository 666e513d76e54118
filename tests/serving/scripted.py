"""An engine without a model, for tests of HTTP alone: what it answers is written down, and how it is asked is kept.

It fulfils the protocol, counts what is under way, takes its time where it is told to, and says which streams were
closed.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.admission import Admission, Question
from tuneloop.serving.application import admission_steps
from tuneloop.serving.engine import CallPiece, ModelEntry, Piece, Query, TokenScore
from tuneloop.serving.http import api
from tuneloop.serving.record_keeper import RecordKeeper

NAME = "tiny:v1"
CHAT: list[Any] = [{"role": "user", "content": "Who are you?"}]
MODELS = [
    ModelEntry(NAME, 512),
    ModelEntry("tiny:adapter", 512, base=NAME),
    ModelEntry("sorter", 512, labels=("good", "bad"), tasks=("chat", "label")),
    ModelEntry("encoder", 256, tasks=("vector",)),
]


def score(text: str, logprob: float | None = -0.5, likeliest: int = 0) -> TokenScore:
    others = tuple(TokenScore(k, chr(97 + k), chr(97 + k).encode(), -0.1 - k) for k in range(likeliest))
    return TokenScore(len(text), text, text.encode(), logprob, others)


def words_of(query: Query) -> list[str]:
    if query.schema is not None:
        return ['{"a"', ": 1}"]
    return ["Hi", " there", "! 🪨"]


def script(query: Query) -> Iterator[Piece]:
    """What is answered: the same words for each choice, one token a word, and what the query asks beside."""
    if query.purpose == "vector":
        yield Piece(vector=[1.0, -2.0, 0.25], finish="stop")
        return
    if query.purpose == "label":
        yield Piece(text="good", labels={"good": 0.75, "bad": 0.25}, finish="stop", tokens=1)
        return
    for choice in range(query.n):
        if query.echo:
            prompt = query.prompt if isinstance(query.prompt, str) else "".join(map(chr, query.prompt))
            scores = [score(c, None if k == 0 else -1.0, query.logprobs or 0) for k, c in enumerate(prompt)]
            yield Piece(choice, prompt, scores=tuple(scores) if query.logprobs is not None else ())
        if query.thinking:
            yield Piece(choice, thought="hm")
        if query.tool_choice != "auto" and query.tools:
            name = query.tools[0]["function"]["name"] if query.tool_choice == "required" else query.tool_choice
            yield Piece(choice, calls=(CallPiece(0, f"call_{choice}", name), CallPiece(0, arguments='{"x":')))
            yield Piece(choice, calls=(CallPiece(0, arguments=" 1}"),))
            yield Piece(choice, finish="tool_calls", tokens=5)
            continue
        most = query.max_new_tokens if query.max_new_tokens is not None else 1000
        words = words_of(query)[:most]
        for word in words:
            yield Piece(choice, word, scores=(score(word, -0.5, query.logprobs),) if query.logprobs is not None else ())
        yield Piece(choice, finish="length" if len(words) == most else "stop", tokens=len(words))


class ScriptedStream:
    """An answer that is there already, or comes slowly."""

    prompt_tokens, cached_tokens = 7, 3

    def __init__(self, engine: ScriptedEngine, pieces: Iterator[Piece]) -> None:
        self._engine, self._pieces, self.closed, self.given = engine, pieces, False, 0

    def __aiter__(self) -> ScriptedStream:
        return self

    async def __anext__(self) -> Piece:
        await asyncio.sleep(self._engine.seconds)
        if self.closed:
            raise StopAsyncIteration
        self.given += 1
        if self._engine.failure is not None and self.given > self._engine.fails_after:
            self._end()
            raise self._engine.failure
        piece = next(self._pieces, None)
        if piece is None:
            self._end()
            raise StopAsyncIteration
        return piece

    def _end(self) -> None:
        self._engine.running.discard(self)

    async def aclose(self) -> None:
        self.closed = True
        self._end()


class ScriptedEngine:
    """Fulfils the protocol of engines, and no more."""

    retry_after = 7

    def __init__(self, script: Callable[[Query], Iterator[Piece]] = script, capacity: int = 2) -> None:
        self.script, self.capacity = script, capacity
        self.open, self.ready, self.weights = True, True, "1"
        self.seconds, self.fails_after = 0.0, 2
        self.failure: TuneloopError | None = None
        self.refusal: TuneloopError | None = None
        self.queries: list[Query] = []
        self.streams: list[ScriptedStream] = []
        self.running: set[ScriptedStream] = set()
        self.most = 0
        """Most that were under way at a time."""

    @property
    def pending(self) -> int:
        return len(self.running)

    async def models(self) -> list[ModelEntry]:
        return MODELS

    async def identity(self, model: str) -> str | None:
        return f"{model} {self.weights}" if self.weights else None

    async def submit(self, query: Query) -> ScriptedStream:
        if not self.open:
            raise ServeError("TL-SERVE-CLOSING")
        if query.model not in {one.name for one in MODELS}:
            raise ServeError("TL-SERVE-MODEL", where="model", param="model", got=query.model, known=NAME)
        if self.refusal is not None:
            raise self.refusal
        self.queries.append(query)
        self.streams.append(ScriptedStream(self, self.script(query)))
        self.running.add(self.streams[-1])
        self.most = max(self.most, len(self.running))
        return self.streams[-1]

    async def submit_question(self, question: Question) -> ScriptedStream:
        return await self.submit(question.query)

    def gauges(self) -> Mapping[str, float]:
        return {"steps_total": 3.0, "cache_tokens": 5.0}

    def close(self, grace: float = 0.0) -> None:
        self.open = False


def app_of(
    engine: Any,
    key: str | None = None,
    queue: int = 8,
    steps: list[Admission] | None = None,
    workspace: Path | None = None,
) -> Any:
    """`workspace` is where it takes feedback, files and batches; without one it takes none."""
    settings = ServePart(queue=queue)
    keeper = None if workspace is None else RecordKeeper.of(workspace, settings, NAME)
    return api.create_app(
        engine,
        admission=steps if steps is not None else admission_steps(settings, engine, key, keeper=keeper),
        model_name=NAME,
        keeper=keeper,
    )


@dataclass
class Served:
    """A server on a loopback port."""

    url: str
    engine: Any

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", **({"api_key": "none", "max_retries": 0, "timeout": 30} | options)
        )

    def post(self, body: Any, path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(f"{self.url}{path}", content=content, timeout=30, **options)

    def until(self, condition: Any, seconds: float = 15.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.005)


@contextmanager
def serving(engine: Any, *, key: str | None = None, queue: int = 8, workspace: Path | None = None) -> Iterator[Served]:
    """A real server on a free loopback port, in a thread."""
    bound = api.listen("127.0.0.1", 0)
    app = app_of(engine, key, queue, workspace=workspace)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{bound.getsockname()[1]}", engine)
    finally:
        server.should_exit = True
        thread.join(20)
        closed = not engine.open
        engine.close()  # whatever has kept the server from it: no process may outlive its test
        assert not thread.is_alive()
        assert closed
