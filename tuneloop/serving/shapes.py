"""The shapes of the API's answers, as types: the writers build them, and /openapi.json describes them."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from typing_extensions import NotRequired, TypedDict

from tuneloop.serving.engine import Finish
from tuneloop.serving.errors import Kind

_EXACT = ConfigDict(extra="forbid")


class CachedTokens(TypedDict):
    __pydantic_config__ = _EXACT  # type: ignore[misc]
    cached_tokens: int


class Usage(TypedDict):
    """Token counts; an end token counts as one that was written."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]
    prompt_tokens: int
    total_tokens: int
    completion_tokens: NotRequired[int]
    prompt_tokens_details: NotRequired[CachedTokens]


class LikelyToken(TypedDict):
    __pydantic_config__ = _EXACT  # type: ignore[misc]
    token: str
    logprob: float
    bytes: list[int]


class ScoredToken(LikelyToken):
    top_logprobs: list[LikelyToken]


class ChatLogprobs(TypedDict):
    __pydantic_config__ = _EXACT  # type: ignore[misc]
    content: list[ScoredToken]
    refusal: None


class FunctionCall(TypedDict):
    __pydantic_config__ = _EXACT  # type: ignore[misc]
    name: str
    arguments: str


class ToolCall(TypedDict):
    __pydantic_config__ = _EXACT  # type: ignore[misc]
    id: str
    type: Literal["function"]
    function: FunctionCall


class AnswerMessage(TypedDict):
    __pydantic_config__ = _EXACT  # type: ignore[misc]
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]


class ChatChoice(TypedDict):
    __pydantic_config__ = _EXACT  # type: ignore[misc]
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(TypedDict):
    """The answers to a chat."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(TypedDict):
    __pydantic_config__ = _EXACT  # type: ignore[misc]
    name: NotRequired[str]
    arguments: str


class CallDelta(TypedDict):
    """A part of a call: id, type and name come with its first part, the arguments go on."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]
    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class ChatDelta(TypedDict):
    __pydantic_config__ = _EXACT  # type: ignore[misc]
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[CallDelta]]


class ChunkChoice(TypedDict):
    __pydantic_config__ = _EXACT  # type: ignore[misc]
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatCompletionChunk(TypedDict):
    """One event of a streamed answer. The last one with include_usage has the token counts and no choice."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[Usage | None]


class TextLogprobs(TypedDict):
    """One entry a token. `text_offset` is where the token begins in the choice's text, in characters."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(TypedDict):
    __pydantic_config__ = _EXACT  # type: ignore[misc]
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None


class Completion(TypedDict):
    """Continuations of texts: whole, or an event of a stream, in which a finish_reason is null until the choice ends."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: NotRequired[Usage | None]


class EmbeddingEntry(TypedDict):
    """A vector; with encoding_format base64 the bytes of little-endian float32 numbers."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


EmbeddingList = TypedDict(
    "EmbeddingList", {"object": Literal["list"], "data": list[EmbeddingEntry], "model": str, "usage": Usage}
)


class Classification(TypedDict):
    """The likeliest label of a text, and the probability of each."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]
    object: Literal["classification"]
    model: str
    label: str
    scores: dict[str, float]
    usage: Usage


class ModelCard(TypedDict):
    """A model that can be asked for. `parent` is the base of an adapter; `max_model_len` its context in tokens."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


ModelList = TypedDict("ModelList", {"object": Literal["list"], "data": list[ModelCard]})


class Health(TypedDict):
    __pydantic_config__ = _EXACT  # type: ignore[misc]
    status: Literal["ok"]


class ErrorDetail(TypedDict):
    """`param` is the field of the request that is wrong, with its place in lists counted from 0."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]
    message: str
    type: Kind
    param: str | None
    code: str


class ErrorReply(TypedDict):
    __pydantic_config__ = _EXACT  # type: ignore[misc]
    error: ErrorDetail
