"""The shapes of the API's answers, as types: the writers build them, and /openapi.json describes them."""

from __future__ import annotations

from typing import Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from tuneloop.serving.engine import Finish
from tuneloop.serving.http.errors import Kind

_EXACT = ConfigDict(extra="forbid")


@with_config(_EXACT)
class CachedTokens(TypedDict):
    cached_tokens: int


@with_config(_EXACT)
class TokenUsage(TypedDict):
    """Token counts; an end token counts as one that was written."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: NotRequired[int]
    prompt_tokens_details: NotRequired[CachedTokens]


@with_config(_EXACT)
class LikelyToken(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


@with_config(_EXACT)
class ScoredToken(LikelyToken):
    top_logprobs: list[LikelyToken]


@with_config(_EXACT)
class ChatLogprobs(TypedDict):
    content: list[ScoredToken]
    refusal: None


@with_config(_EXACT)
class FunctionCall(TypedDict):
    name: str
    arguments: str


@with_config(_EXACT)
class ToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: FunctionCall


@with_config(_EXACT)
class AnswerMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]


@with_config(_EXACT)
class ChatChoice(TypedDict):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


@with_config(_EXACT)
class ChatCompletion(TypedDict):
    """The answers to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage


@with_config(_EXACT)
class FunctionDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


@with_config(_EXACT)
class CallDelta(TypedDict):
    """A part of a call: id, type and name come with its first part, the arguments go on."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


@with_config(_EXACT)
class ChatDelta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[CallDelta]]


@with_config(_EXACT)
class ChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


@with_config(_EXACT)
class ChatCompletionChunk(TypedDict):
    """One event of a streamed answer. The last one with include_usage has the token counts and no choice."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[TokenUsage | None]


@with_config(_EXACT)
class TextLogprobs(TypedDict):
    """One entry a token. `text_offset` is where the token begins in the choice's text, in characters."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


@with_config(_EXACT)
class TextChoice(TypedDict):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None


@with_config(_EXACT)
class TextCompletion(TypedDict):
    """Continuations of texts, or an event of a stream, in which a finish_reason is null until the choice ends."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: NotRequired[TokenUsage | None]


@with_config(_EXACT)
class EmbeddingEntry(TypedDict):
    """A vector; with encoding_format base64 the bytes of little-endian float32 numbers."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


# Written as dicts: "data" is a key of theirs, and no name of ours.
EmbeddingList = TypedDict(  # noqa: UP013
    "EmbeddingList", {"object": Literal["list"], "data": list[EmbeddingEntry], "model": str, "usage": TokenUsage}
)


@with_config(_EXACT)
class Classification(TypedDict):
    """The likeliest label of a text, and the probability of each."""

    object: Literal["classification"]
    model: str
    label: str
    scores: dict[str, float]
    usage: TokenUsage


@with_config(_EXACT)
class ModelCard(TypedDict):
    """A model that can be asked for. `parent` is the base of an adapter; `max_model_len` its context in tokens."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


ModelList = TypedDict("ModelList", {"object": Literal["list"], "data": list[ModelCard]})  # noqa: UP013


@with_config(_EXACT)
class Health(TypedDict):
    status: Literal["ok"]


@with_config(_EXACT)
class ErrorDetail(TypedDict):
    """`param` is the field of the request that is wrong, with its place in lists counted from 0."""

    message: str
    type: Kind
    param: str | None
    code: str


@with_config(_EXACT)
class ErrorReply(TypedDict):
    error: ErrorDetail
