"""The engine that serves an exported GGUF with llama.cpp, in a process of its own.

Chats are rendered and texts become tokens on our side; llama.cpp is given ids and hands back text. How many answers
may run is decided here, so that its cache always has a place for all of each: one that ran out of it would end others.
"""

from __future__ import annotations

import asyncio
import difflib
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tuneloop.base.environment import cores
from tuneloop.base.errors import FAMILIES, ServeError, TuneloopError
from tuneloop.base.language import listed
from tuneloop.base.optional import need
from tuneloop.gguf.child import LlamaChild
from tuneloop.recipe.schema import ServePart
from tuneloop.serving.engine import AnswerStream, ModelEntry, Piece, Query
from tuneloop.serving.gguf_body import LlamaReader, llama_body
from tuneloop.serving.gguf_files import GgufModel, gguf_model
from tuneloop.serving.supervisor import Supervisor, log
from tuneloop.serving.token_budget import TokenBudget
from tuneloop.serving.upstream import Upstream
from tuneloop.serving.upstream_stream import OpenStreams, UpstreamStream

Answer = TypeVar("Answer")
PATIENCE = 1800.0
"""Seconds that loading a model may take."""
PROMPT_SECONDS = 60.0
"""Seconds that a prompt may take to become tokens."""
RESTART_SECONDS = 30.0
"""How long a request waits for a process that is being started again."""

SLOTS, CACHE_TOKENS = 8, 8192
GONE_SECONDS = 5.0
"""Within which a process that had ended before it was asked shows it."""

DOUBT_SECONDS = 1.0
"""How long a process whose connection broke is looked at before it is given another request."""


class _Gone(Exception):
    """The process had ended before it was given anything."""


class GgufChild(LlamaChild):
    """The process, as the engine sees it; `upstream` asks the server in it, once it has begun."""

    upstream: Upstream
    vocabulary: int

    def __init__(self, model: GgufModel, context: int, slots: int) -> None:
        super().__init__(model.path, "tuneloop.serving.gguf_child", PATIENCE)
        self._key = secrets.token_urlsafe(24)
        self._opening = {
            "gguf": str(model.path.resolve()),
            "adapters": [str(path.resolve()) for path in model.adapters.values()],
            "context": context,
            "slots": slots,
            "threads": cores(),
            "key": self._key,
        }

    def begin(self) -> None:
        about, _ = self._ask("open", **self._opening)
        self.upstream, self.vocabulary = Upstream(str(about["address"]), self._key), int(about["vocabulary"])
        self._patience = PROMPT_SECONDS

    def wait(self) -> str:
        self._child.wait()
        return self._end()

    def prompt(self, query: Query) -> list[int]:
        """The tokens of a query's prompt. Raises TL-DATA-TEMPLATE, and TL-MODEL-LLAMACPP where the process is gone."""
        if query.task == "chat":
            chat = {"chat": query.chat, "tools": list(query.tools), "thinking": query.thinking}
            reply, _ = self._ask("chat", **chat)
        else:
            reply, _ = self._ask("text", text=query.prompt)
        if refused := reply.get("refused"):
            family = FAMILIES[str(refused["code"]).split("-")[1].lower()]
            raise family(refused["code"], where=refused["where"], **refused["facts"])
        return list(reply["ids"])

    def written(self, ids: list[int]) -> str:
        """The text of tokens."""
        return str(self._ask("written", ids=ids)[0]["text"])


class GgufEngine:
    """An Engine over a GGUF model and its adapters. `slots` answers run at a time, in a cache of `tokens` tokens.

    Raises TL-MACHINE-EXTRA, TL-MODEL-LLAMACPP.
    """

    def __init__(
        self,
        model: GgufModel,
        *,
        slots: int,
        tokens: int,
        max_new_tokens: int,
        notice: Callable[[str], None] = log.warning,
    ) -> None:
        need("llguidance", extra="gguf")
        self._model, self._most = model, max_new_tokens
        self._context = min(model.context, tokens)
        self._budget = TokenBudget(slots, tokens)
        self._streams = OpenStreams()
        self._prompts = ThreadPoolExecutor(1, thread_name_prefix="tuneloop-prompts")
        self._waiting = self._answered = self._tokens = 0
        self._seconds = 1.0
        self.open = True
        self._doubted: GgufChild | None = None
        self._supervisor = Supervisor(partial(GgufChild, model, tokens, slots), notice)

    @property
    def ready(self) -> bool:
        return self.open and self._supervisor.child is not None

    @property
    def pending(self) -> int:
        return self._waiting + len(self._streams)

    @property
    def capacity(self) -> int:
        return self._budget.places

    @property
    def retry_after(self) -> int:
        return max(1, round(self._seconds))

    async def models(self) -> list[ModelEntry]:
        own = ModelEntry(self._model.name, self._context)
        return [own, *(ModelEntry(name, self._context, own.name) for name in self._model.adapters)]

    async def submit(self, query: Query) -> AnswerStream:
        if not self.open:
            raise ServeError("TL-SERVE-CLOSING")
        lora = self._lora(query.model)
        self._refuse(query)
        self._waiting += 1
        try:
            child = await self._sound()
            try:
                return await self._begun(child, query, lora)
            except _Gone:  # it ended before it was given anything, so nothing is done twice
                child = await self._supervisor.running(RESTART_SECONDS, lost=child)
                return await self._begun(child, query, lora)
        except _Gone as error:
            raise self._supervisor.down() from error
        finally:
            self._waiting -= 1

    def gauges(self) -> Mapping[str, float]:
        budget = self._budget
        return {
            "slots": budget.places,
            "slots_busy": budget.places - budget.free_places,
            "cache_tokens": budget.tokens,
            "cache_tokens_busy": budget.tokens - budget.free_tokens,
            "engine_restarts_total": self._supervisor.restarts,
            "answers_total": self._answered,
        }

    def close(self, grace: float = 0.0) -> None:
        self.open = False
        self._streams.close(grace)
        self._supervisor.close()
        self._prompts.shutdown(wait=False, cancel_futures=True)

    def _lora(self, model: str) -> list[float]:
        """The weight of each adapter for a model's name. Raises TL-SERVE-MODEL."""
        names = list(self._model.adapters)
        if model != self._model.name and model not in names:
            known = [self._model.name, *names]
            near = difflib.get_close_matches(model, known, 5, 0.4) or known[:5]
            raise ServeError("TL-SERVE-MODEL", where="model", param="model", got=model[:200], known=listed(near))
        return [float(name == model) for name in names]

    def _refuse(self, query: Query) -> None:
        """Raise TL-SERVE-UNSUPPORTED for what llama.cpp does not do, TL-SERVE-REQUEST for a schema that is none."""
        unsupported = {
            "model": query.task in {"label", "vector"} and query.task,
            "n": query.n > self._budget.places and query.n,
            "echo": query.echo and query.logprobs is not None and "true, logprobs",
            "tool_choice": bool(query.tools) and query.tool_choice not in {"none", "auto"} and query.tool_choice,
        }
        for param, got in unsupported.items():
            if got:
                raise ServeError("TL-SERVE-UNSUPPORTED", where=param, param=param, got=got)
        if query.schema and (error := schema_fault(query.schema)):
            raise ServeError("TL-SERVE-REQUEST", where="response_format", param="response_format", error=error)

    async def _ids(self, child: GgufChild, query: Query) -> list[int]:
        if query.task == "text" and not isinstance(query.prompt, str):
            ids = list(query.prompt)
            if outside := next((n for n in ids if not 0 <= n < child.vocabulary), None):
                facts = {"token": outside, "id": outside, "tokens": child.vocabulary, "rows": child.vocabulary}
                raise ServeError("TL-SERVE-TOKEN", where="prompt", param="prompt", **facts)
            return ids
        return await self._asked(child.prompt, query)

    async def _echo(self, child: GgufChild, query: Query) -> list[Piece]:
        """The prompt, before each answer."""
        text = query.prompt if isinstance(query.prompt, str) else await self._asked(child.written, list(query.prompt))
        return [Piece(choice=n, text=text) for n in range(query.n)]

    async def _asked(self, question: Callable[..., Answer], *given: Any) -> Answer:
        """What the process answers over its pipes; one question at a time, and the event loop goes on."""
        began = time.monotonic()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._prompts, question, *given)
        except TuneloopError as error:
            if error.code != "TL-MODEL-LLAMACPP":
                raise
            if time.monotonic() - began < GONE_SECONDS:
                raise _Gone from error
            raise self._supervisor.down() from error  # a question that it cannot answer is not put twice

    def _length(self, query: Query, prompt: int) -> int:
        """Tokens that the answer may have. Raises TL-SERVE-CONTEXT, TL-SERVE-ROOM."""
        param = "messages" if query.task == "chat" else "prompt"
        left = self._context - prompt
        if prompt == 0:
            raise ServeError("TL-SERVE-REQUEST", where=param, param=param, error="0")
        if left <= 0:
            raise ServeError("TL-SERVE-CONTEXT", where=param, param=param, tokens=prompt, context=self._context)
        if query.max_new_tokens is None:
            return min(left, self._most)
        if query.max_new_tokens > left:
            facts = {"tokens": prompt, "wanted": query.max_new_tokens, "left": left, "context": self._context}
            raise ServeError("TL-SERVE-ROOM", where="max_tokens", param="max_tokens", **facts)
        return query.max_new_tokens

    async def _begun(self, child: GgufChild, query: Query, lora: list[float]) -> AnswerStream:
        """The answers, once the cache has a place for them. Raises _Gone where the process has ended before."""
        ids = await self._ids(child, query)
        most = self._length(query, len(ids))
        needed = query.n, len(ids) + query.n * (most + 1)
        await self._budget.take(*needed)
        try:
            first = [] if not query.echo else await self._echo(child, query)
            began = time.monotonic()
            body = llama_body(query, ids, most, self._model.penalty, lora)
            events = await child.upstream.stream("/completion", body)
        except BaseException as error:
            self._budget.give(*needed)
            if isinstance(error, ServeError) and error.facts.get("unreachable"):
                raise _Gone from error
            raise self._failure(error) if isinstance(error, ServeError) else error
        stream = UpstreamStream(events, LlamaReader(query, len(ids)), self._streams, failed=self._failure, first=first)
        stream.released = partial(self._ended, began, needed)
        return stream

    async def _sound(self) -> GgufChild:
        """The process, once it is sure that it lives: a killed one is seen to be gone a little after its connections."""
        child = await self._supervisor.running(RESTART_SECONDS)
        end = time.monotonic() + DOUBT_SECONDS
        while child is self._doubted and time.monotonic() < end:
            if child.ended:
                return await self._supervisor.running(RESTART_SECONDS, lost=child)
            await asyncio.sleep(0.02)
        self._doubted = None
        return child

    def _failure(self, error: ServeError) -> ServeError:
        """A connection that broke means that the process is gone."""
        if error.code != "TL-SERVE-UPSTREAM":
            return error
        self._doubted = self._supervisor.child
        return self._supervisor.down()

    def _ended(self, began: float, needed: tuple[int, int]) -> None:
        self._budget.give(*needed)
        self._answered += 1
        self._seconds = 0.8 * self._seconds + 0.2 * (time.monotonic() - began)


def schema_fault(schema: Mapping[str, Any]) -> str:
    """What llama.cpp's grammar library has against a JSON schema, "" where nothing: llama.cpp itself would answer
    without it, in silence."""
    import json

    from llguidance import LLMatcher

    try:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(dict(schema)))
        return str(LLMatcher.validate_grammar(grammar)).splitlines()[0] if LLMatcher.validate_grammar(grammar) else ""
    except (ValueError, RecursionError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]


def gguf_engine(ref: str | Path, settings: ServePart, workspace: Path, say: Callable[[str], None]) -> GgufEngine:
    """llama.cpp over the GGUF that `ref` means, loaded. Raises what `gguf_model` and GgufEngine raise."""
    model = gguf_model(ref, say)
    return GgufEngine(model, slots=SLOTS, tokens=CACHE_TOKENS, max_new_tokens=settings.max_new_tokens, notice=say)
