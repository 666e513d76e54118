"""The protocol of an engine: what computes the answers behind the server, in a process of its own or elsewhere.

It is free of torch and of HTTP: a query goes in, pieces of answers come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

from tuneloop.base.records import Sampling
from tuneloop.data.tokens.templates import Chat

Purpose = Literal["chat", "text", "label", "vector"]
"""What is wanted: an answer to a chat, the continuation of a text, the label of a text, or its embedding."""
Finish = Literal["stop", "length", "tool_calls", "content_filter"]
GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Query:
    """One request to an engine: a prompt, and `n` answers to it.

    `model` is a name that the engine lists. `chat`, `tools` and `tool_choice` ("none", "auto", "required" or a
    function's name) are for a chat and a label; `prompt`, a text or token ids, for a text and a vector.
    `max_new_tokens` None leaves the length to the engine's settings and the context. `logprobs` is how many of the
    likeliest tokens are wanted beside each token's own (0: its own only; None: nothing). `echo`: the prompt comes
    first, with its scores where `logprobs` are wanted. `schema` is a JSON schema that the answer's text must meet
    ({} is any JSON object).
    """

    purpose: Purpose
    model: str
    chat: Chat = field(default_factory=list)
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    thinking: bool | None = None
    prompt: str | tuple[int, ...] = ""
    max_new_tokens: int | None = None
    sampling: Sampling = GREEDY
    n: int = 1
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    schema: Mapping[str, Any] | None = None
    user: str = ""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token, and how likely it was: natural logarithms of probabilities, before temperature and limits (those that
    evaluation and lm-evaluation-harness go by). `likeliest` are the alternatives, the likeliest first."""

    token: int
    text: str
    octets: bytes
    logprob: float | None
    """None for a prompt's first token."""
    likeliest: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A part of a tool call: `name` and `id` come with its first piece, `arguments` is JSON text that goes on."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new in answer number `choice`. The last one of each choice has `finish`, and the tokens that were
    written (the end token counts)."""

    choice: int = 0
    text: str = ""
    thought: str = ""
    calls: tuple[CallPiece, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    finish: Finish | None = None
    tokens: int = 0
    labels: Mapping[str, float] | None = None
    """Of task label: label -> probability; `text` is the likeliest."""
    vector: Sequence[float] | None = None
    """Of task vector."""
    count: int = 1
    """How many pieces of the engine it is: texts that come at once may be handed on as one."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model that can be asked for by `name`; an adapter names its `base`."""

    name: str
    context: int
    """Longest prompt and answer together, in tokens."""
    base: str | None = None
    labels: tuple[str, ...] = ()
    tasks: tuple[Purpose, ...] = ("chat", "text")
    loaded: bool = True


class AnswerStream(Protocol):
    """Answers under way: an asynchronous iterator of pieces, which ends when each choice has finished.

    An error of the answer is raised at the iteration. `aclose` cancels the answers, also before their first piece was
    asked for; a step that wraps a stream hands it on.
    """

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def cached_tokens(self) -> int:
        """Of the prompt's tokens those whose keys and values were at hand."""

    def __aiter__(self) -> AnswerStream: ...

    async def __anext__(self) -> Piece: ...

    async def aclose(self) -> None: ...


class WrappedStream:
    """An AnswerStream over another one: what a class of it does not change is handed on."""

    def __init__(self, stream: AnswerStream) -> None:
        self._stream = stream

    @property
    def prompt_tokens(self) -> int:
        return self._stream.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        return self._stream.cached_tokens

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        return await anext(self._stream)

    async def aclose(self) -> None:
        await self._stream.aclose()


class Engine(Protocol):
    """Answers queries; shared by all requests of a server. Everything but `close` is called on its event loop."""

    @property
    def open(self) -> bool:
        """False once `close` was called."""

    @property
    def ready(self) -> bool:
        """Whether a query would be answered now: False while a child process loads or an upstream is down."""

    @property
    def pending(self) -> int:
        """Requests that were submitted and have not ended, those that are being answered counted."""

    @property
    def capacity(self) -> int:
        """How many are answered at the same time."""

    @property
    def retry_after(self) -> int:
        """Whole seconds after which a refused request may find a place."""

    async def models(self) -> list[ModelEntry]:
        """What may be asked for; the first is the default."""

    async def identity(self, model: str) -> str | None:
        """What the answers of a name depend on beside the query: a digest of weights, adapter, template and settings.
        Equal ones stand for equal answers, on other machines too; None where it cannot be told.

        Raises TL-SERVE-MODEL.
        """

    async def submit(self, query: Query) -> AnswerStream:
        """Take a query. It is accepted, or refused with the reason, before this returns, so that a streaming server can
        still send a status.

        Raises TL-SERVE-MODEL (with the nearest names), TL-DATA-TEMPLATE, TL-SERVE-CONTEXT, TL-SERVE-ROOM,
        TL-SERVE-TOKEN, TL-SERVE-UNSUPPORTED for what this engine cannot do, TL-SERVE-CLOSING, TL-SERVE-DOWN.
        """

    def gauges(self) -> Mapping[str, float]:
        """Figures for /metrics: Prometheus name without prefix -> its value now ("tokens_total" counters end so)."""

    def close(self, grace: float = 0.0) -> None:
        """Refuse what waits, give the answers under way `grace` seconds, and end. Blocks; may be repeated."""
