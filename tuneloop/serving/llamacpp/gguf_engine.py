"""The engine that serves an exported GGUF with llama.cpp, in a process of its own.

Chats are rendered and texts become tokens on our side; llama.cpp is given ids and hands back text. How many answers
may run is decided here, so that its cache always has a place for all of each: one that ran out of it would end others.
"""

from __future__ import annotations

import asyncio
import difflib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tuneloop.base.environment import cores
from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.base.language import listed, t
from tuneloop.base.optional import need
from tuneloop.data.tokens.templates import Chat
from tuneloop.gguf.child import LlamaChild
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.admission import Question
from tuneloop.serving.answers.call_formats import THOUGHT, call_format, forced_call, markers, thinks
from tuneloop.serving.answers.parsing import answer_parser
from tuneloop.serving.answers.several import Several
from tuneloop.serving.engine import AnswerStream, ModelEntry, Piece, Query
from tuneloop.serving.identity import files_digest, identity_of
from tuneloop.serving.llamacpp.gguf_body import GgufPrompt, LlamaReader, llama_body, require_schema
from tuneloop.serving.llamacpp.gguf_files import GgufModel, gguf_model
from tuneloop.serving.llamacpp.token_budget import TokenBudget
from tuneloop.serving.supervisor import Supervisor, log
from tuneloop.serving.upstream.upstream import Upstream
from tuneloop.serving.upstream.upstream_stream import OpenStreams, UpstreamStream
from tuneloop.serving.wire import read_error

Answer = TypeVar("Answer")
PATIENCE = 1800.0
"""Seconds that loading a model may take."""
PROMPT_SECONDS = 60.0
"""Seconds that a prompt may take to become tokens."""
RESTART_SECONDS = 30.0
"""How long a request waits for a process that is being started again."""

SLOT_TOKENS, LEAST_TOKENS = 512, 2048
"""Tokens of the cache for each slot, and at least, where the recipe does not say."""
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
        super().__init__(model.path, "tuneloop.serving.llamacpp.gguf_child", PATIENCE)
        self._templates: dict[str, str] = dict(model.templates)
        self._own_template: str | None = None
        self._key = secrets.token_urlsafe(24)
        self._load_frame = {
            "gguf": str(model.path.resolve()),
            "adapters": [str(path.resolve()) for path in model.adapters.values()],
            "templates": dict(model.templates),
            "context": context,
            "slots": slots,
            "threads": cores(),
            "key": self._key,
        }

    def begin(self) -> None:
        about, _ = self._ask("open", **self._load_frame)
        self.upstream, self.vocabulary = (
            Upstream(str(about["address"]), self._key, held=False),
            int(about["vocabulary"]),
        )
        self._own_template = about["template"] if isinstance(about["template"], str) else None
        self._patience = PROMPT_SECONDS

    def template(self, model: str) -> str | None:
        """The chat template of a model's name."""
        return self._templates.get(model, self._own_template)

    def wait(self) -> str:
        self._child.wait()
        return self._end()

    def chat(self, query: Query, begun: str) -> tuple[list[int], str]:
        """The tokens of a chat with `begun` behind it, and its end as text. Raises TL-DATA-TEMPLATE, and
        TL-MODEL-LLAMACPP where the process is gone."""
        tools = list(query.tools)
        reply, _ = self._ask(
            "chat", model=query.model, chat=query.chat, tools=tools, thinking=query.thinking, begun=begun
        )
        if refused := reply.get("refused"):
            raise read_error(refused)
        return list(reply["ids"]), str(reply["tail"])

    def text(self, text: str) -> list[int]:
        """The tokens of a text to be continued."""
        return list(self._ask("text", text=text)[0]["ids"])

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
        self._model, self._longest = model, max_new_tokens
        self._identities: dict[str, str] = {}
        self._context = min(model.context, tokens)
        self._budget = TokenBudget(slots, tokens)
        self._streams = OpenStreams()
        self._prompts = ThreadPoolExecutor(1, thread_name_prefix="tuneloop-prompts")
        self._waiting = self._answered = self._tokens = 0
        self._seconds = 1.0
        self.open = True
        self._doubted: GgufChild | None = None
        self._supervisor = Supervisor(partial(GgufChild, model, tokens, slots), notice)
        self._supervisor.start()

    @property
    def name(self) -> str:
        """The model's name, as clients ask for it."""
        return self._model.name

    @property
    def ready(self) -> bool:
        return self.open and self._supervisor.ready

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

    async def identity(self, model: str) -> str | None:
        self._lora(model)
        if model not in self._identities:
            digests = await asyncio.to_thread(self._digests, model)
            own = self._model
            words = own.systems.get(model), own.templates.get(model), own.penalty
            self._identities[model] = identity_of("gguf", digests, words, self._longest, self._context)
        return self._identities[model]

    def _digests(self, model: str) -> list[str]:
        files = [self._model.path, *([self._model.adapters[model]] if model in self._model.adapters else [])]
        return [files_digest([file], file.parent) for file in files]

    async def submit(self, query: Query) -> AnswerStream:
        if not self.open:
            raise ServeError("TL-SERVE-CLOSING")
        self._lora(query.model)
        self._refuse(query)
        if query.n == 1:
            return await self._submit(query)
        # llama.cpp's own n ends in an error of its batch where its cache is full.
        answers = SeveralAnswers(
            lambda question: self._submit(question.query), [_alone(query, n) for n in range(query.n)]
        )
        await answers.start(self._budget.places)
        return answers

    async def _submit(self, query: Query) -> AnswerStream:
        """One answer."""
        lora = self._lora(query.model)
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
        """Raise TL-SERVE-UNSUPPORTED for what llama.cpp does not do."""
        unsupported = {
            "model": query.purpose in {"label", "vector"} and query.purpose,
            "echo": query.echo and query.logprobs is not None and t("true, with logprobs"),
        }
        for param, got in unsupported.items():
            if got:
                raise ServeError("TL-SERVE-UNSUPPORTED", where=param, param=param, got=got)

    async def _prompt(self, child: GgufChild, query: Query) -> GgufPrompt:
        """Raises TL-DATA-TEMPLATE, TL-SERVE-CONTEXT, TL-SERVE-ROOM, TL-SERVE-TOKEN, TL-SERVE-UNSUPPORTED,
        TL-SERVE-SCHEMA."""
        if query.purpose == "text":
            ids = await self._text_ids(child, query.prompt)
            prompt = GgufPrompt(ids, self._most(query, len(ids)), schema=query.schema)
        else:
            prompt = await self._chat_prompt(child, query)
        _require_tokens([token for token, _ in query.sampling.logit_bias], child.vocabulary, "logit_bias")
        if prompt.schema is not None:
            require_schema(prompt.schema)
        return prompt

    async def _text_ids(self, child: GgufChild, prompt: str | tuple[int, ...]) -> list[int]:
        if isinstance(prompt, str):
            return await self._child_answer(child.text, prompt)
        _require_tokens(prompt, child.vocabulary, "prompt")
        return list(prompt)

    async def _chat_prompt(self, child: GgufChild, query: Query) -> GgufPrompt:
        """The chat as it was trained, and what takes its answers apart."""
        query = replace(query, chat=self._with_system(query), tools=() if query.tool_choice == "none" else query.tools)
        begun, schema, template = "", query.schema, child.template(query.model)
        if query.tools:
            calls = call_format(template)
            answer_parser(template, "", query)  # its error is the request's
            if calls is not None and query.tool_choice != "auto":
                begun, schema = forced_call(calls, query.tools, query.tool_choice)
        ids, tail = await self._child_answer(child.chat, query, begun)
        parsed = query.tools or thinks(template)
        seen = markers(template) if query.tools else tuple(one for one in markers(template) if one in THOUGHT)
        parser = partial(answer_parser, template, tail, query) if parsed else None
        return GgufPrompt(ids, self._most(query, len(ids)), begun, schema, seen, parser)

    def _with_system(self, query: Query) -> Chat:
        """The chat with the system prompt that the model was trained with, where it has none of its own."""
        system = self._model.systems.get(query.model)
        if not system or any(turn.get("role") == "system" for turn in query.chat):
            return query.chat
        return [{"role": "system", "content": system}, *query.chat]

    async def _echo(self, child: GgufChild, query: Query) -> list[Piece]:
        """The prompt, before each answer."""
        if isinstance(query.prompt, str):
            return [Piece(text=query.prompt)]
        return [Piece(text=await self._child_answer(child.written, list(query.prompt)))]

    async def _child_answer(self, question: Callable[..., Answer], *given: Any) -> Answer:
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

    def _most(self, query: Query, prompt: int) -> int:
        """Tokens that the answer may have. Raises TL-SERVE-CONTEXT, TL-SERVE-ROOM."""
        param = "messages" if query.purpose == "chat" else "prompt"
        left, wanted = self._context - prompt, query.max_new_tokens
        if prompt == 0:
            raise ServeError("TL-SERVE-REQUEST", where=param, param=param, error=t("it is empty"))
        if left <= 0:
            raise ServeError("TL-SERVE-CONTEXT", where=param, param=param, tokens=prompt, context=self._context)
        if wanted is None:
            return min(left, self._longest)
        if wanted > left:
            facts: dict[str, Any] = {"tokens": prompt, "wanted": wanted, "left": left, "context": self._context}
            raise ServeError("TL-SERVE-ROOM", where="max_tokens", param="max_tokens", **facts)
        return wanted

    async def _begun(self, child: GgufChild, query: Query, lora: list[float]) -> AnswerStream:
        """The answers, once the cache has a place for them. Raises _Gone where the process has ended before."""
        prompt = await self._prompt(child, query)
        needed = 1, len(prompt.ids) + prompt.most
        await self._budget.take(*needed)
        try:
            first = [] if not query.echo else await self._echo(child, query)
            began = time.monotonic()
            body = llama_body(query, prompt, self._model.penalty, lora)
            events = await child.upstream.stream("/completion", body)
        except BaseException as error:
            self._budget.give(*needed)
            if not isinstance(error, ServeError):
                raise
            raise (_Gone() if error.facts.get("unreachable") else self._failure(error)) from error
        reader = LlamaReader(query, prompt)
        first += reader.begun
        stream = UpstreamStream(events, reader, self._streams, failed=self._failure, first=first)
        stream.released = partial(self._ended, began, needed)
        return stream

    async def _sound(self) -> GgufChild:
        """The process, once it is sure that it lives: a killed one is gone a little after its connections."""
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


class SeveralAnswers(Several):
    """Answers to one prompt: its tokens are counted once."""

    @property
    def prompt_tokens(self) -> int:
        return self._streams[0].prompt_tokens if self._streams else 0

    @property
    def cached_tokens(self) -> int:
        return self._streams[0].cached_tokens if self._streams else 0


def _alone(query: Query, number: int) -> Question:
    """Answer number `number` of a query as a query; each has a seed of its own."""
    seed = query.sampling.seed
    sampling = query.sampling if seed is None else replace(query.sampling, seed=seed + number)
    return Question(None, replace(query, n=1, sampling=sampling))  # type: ignore[arg-type]


def _require_tokens(ids: Sequence[int], vocabulary: int, param: str) -> None:
    """Raise TL-SERVE-REQUEST for a negative id, TL-SERVE-TOKEN for one that the vocabulary does not have."""
    if min(ids, default=0) < 0:
        raise ServeError("TL-SERVE-REQUEST", where=param, param=param, error=t("a token id is negative"))
    if (most := max(ids, default=0)) >= vocabulary:
        facts: dict[str, Any] = {"token": most, "id": most, "tokens": vocabulary, "rows": vocabulary}
        raise ServeError("TL-SERVE-TOKEN", where=param, param=param, **facts)


def cache_tokens(model: GgufModel, settings: ServePart) -> int:
    """Tokens of the shared cache: those of the settings, else some for each slot, in a quarter of the free memory."""
    if settings.cache_tokens:
        return settings.cache_tokens
    fitting = psutil.virtual_memory().available // 4 // model.token_bytes
    return max(min(model.context, LEAST_TOKENS), min(fitting, settings.slots * SLOT_TOKENS))


def gguf_engine(ref: str | Path, settings: ServePart, workspace: Path, say: Callable[[str], None]) -> GgufEngine:
    """llama.cpp over the GGUF that `ref` means, loaded. Raises what `gguf_model` and GgufEngine raise."""
    model = gguf_model(ref, say)
    tokens = cache_tokens(model, settings)
    return GgufEngine(model, slots=settings.slots, tokens=tokens, max_new_tokens=settings.max_new_tokens, notice=say)
