"""The shapes of the OpenAI chat API: what a request may say, what a reply looks like, and how an error is put.

A field that would change the answer and is not supported is refused, not ignored; fields that change nothing here (who
the user is, where a hosted service would store or bill) are let through. No engine is known here.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.base.language import sentences
from tuneloop.base.records import Reply
from tuneloop.data.tokens.templates import Chat

COLDEST = 1e-3
"""Below this temperature sampling is greedy within the precision of the logits, and is done so."""
MOST_MESSAGES = 2048
MOST_STOPS = 16

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "reasoning_effort": (None,),
    "verbosity": (None,),
}
"""Fields of the API that would change the answer, with the values at which they change nothing."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TextPart(_Body):
    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    """One message of a request. `content` may come in text parts; pictures and sound are refused."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _has_content(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content is missing")
        return self

    @field_validator("content", "name", "reasoning_content")
    @classmethod
    def _is_text(cls, content: Any) -> Any:
        for text in [content] if isinstance(content, str) else [p.text for p in content or ()]:
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError("half of a surrogate pair is no character") from error
        return content

    def as_chat(self) -> dict[str, Any]:
        """The dict that a chat template takes."""
        parts = self.content if isinstance(self.content, list) else [TextPart(type="text", text=self.content or "")]
        out: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": "".join(p.text for p in parts),
        }
        for key in ("name", "tool_call_id", "tool_calls", "reasoning_content"):
            if field := getattr(self, key):
                out[key] = [_decoded(call) for call in field] if key == "tool_calls" else field
        return out


def _decoded(call: Any) -> Any:
    """A tool call with its arguments as an object, as training renders them; clients send them as JSON text."""
    inner = call.get("function") if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**inner, "arguments": json.loads(inner["arguments"] or "{}")}}
    except ValueError:
        return call


class StreamOptions(_Body):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatRequest(_Body):
    """POST /v1/chat/completions. Without a temperature the answer is greedy: what evaluation has measured."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_supported(cls, body: Any) -> Any:
        """Refuse what would change the answer; raised as it is, past pydantic, for it is no mistake of form."""
        if not isinstance(body, dict):
            return body
        for key, neutral in _NEUTRAL.items():
            if key in body and body[key] not in neutral:
                raise ServeError("TL-SERVE-UNSUPPORTED", where=key, param=key, got=_short(body[key]))
        return {k: v for k, v in body.items() if k not in _NEUTRAL}

    @field_validator("stop")
    @classmethod
    def _stops(cls, stop: Any) -> Any:
        stops = [stop] if isinstance(stop, str) else stop or []
        if any(not s for s in stops):
            raise ValueError("a stop text must not be empty")
        if len(stops) > MOST_STOPS:
            raise ValueError(f"at most {MOST_STOPS} stop texts")
        return stop

    @model_validator(mode="after")
    def _options_belong_to_streams(self) -> ChatRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    def chat(self) -> Chat:
        return [m.as_chat() for m in self.messages]

    @property
    def wanted(self) -> int | None:
        """The longest answer asked for, in tokens; None when the request leaves it open."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def sampling_temperature(self) -> float:
        """The temperature to sample at; 0 is greedy."""
        return 0.0 if self.temperature is None or self.temperature < COLDEST else self.temperature


class ClassifyRequest(_Body):
    """POST /v1/classify: a text, and the label it has."""

    model: str
    input: str = Field(min_length=1)

    def chat(self) -> Chat:
        return [{"role": "user", "content": self.input}]


def classified(model: str, reply: Reply) -> dict[str, Any]:
    """The body of an answer: the likeliest label, and the probability of each."""
    tokens = {"prompt_tokens": reply.prompt_tokens, "total_tokens": reply.prompt_tokens}
    return {"object": "classification", "model": model, "label": reply.text, "scores": reply.scores, "usage": tokens}


def answer_budget(request: ChatRequest, prompt_tokens: int, context: int, default: int) -> int:
    """Tokens the answer may have: what is asked for, or `default` where the request leaves it open and the context has
    room. Raises TL-SERVE-CONTEXT, TL-SERVE-ROOM when the context cannot hold what is asked.

    >>> answer_budget(ChatRequest(model="m", messages=[{"role": "user", "content": "?"}], max_tokens=5), 10, 100, 50)
    5
    """
    left = context - prompt_tokens
    if left <= 0:
        raise ServeError("TL-SERVE-CONTEXT", where="messages", param="messages", tokens=prompt_tokens, context=context)
    if request.wanted is None:
        return min(left, default)
    if request.wanted > left:
        raise ServeError(
            "TL-SERVE-ROOM",
            where="max_tokens",
            param="max_tokens",
            tokens=prompt_tokens,
            wanted=request.wanted,
            left=left,
            context=context,
        )
    return request.wanted


class ResponseWriter:
    """Writes one answer: whole, or as server-sent events that share an id."""

    def __init__(self, model: str) -> None:
        self.model, self.id, self.created = model, f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def completion(self, reply: Reply) -> dict[str, Any]:
        """The body of a reply that is not streamed."""
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(reply)}

    def chunk(self, delta: dict[str, str], finish: str | None = None, **extra: Any) -> str:
        """One event: {"role": …} first, then {"content": …} pieces, {} with the reason at the end."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **extra})

    def usage_chunk(self, reply: Reply) -> str:
        """The event with the token counts and no choice, for include_usage."""
        return event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage(reply)})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


DONE = "data: [DONE]\n\n"


def event(content: dict[str, Any]) -> str:
    """One server-sent event. JSON writes line ends as \\n, so one `data:` line holds it."""
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


def usage(reply: Reply) -> dict[str, int]:
    """Token counts; the end token counts as one that was generated.

    >>> usage(Reply("x", 3, 2, "stop"))
    {'prompt_tokens': 3, 'completion_tokens': 2, 'total_tokens': 5}
    """
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.tokens,
        "total_tokens": reply.prompt_tokens + reply.tokens,
    }


def model_entry(name: str, created: int, context: int) -> dict[str, Any]:
    """A model in the list of models; its context is called as vLLM calls it."""
    return {"id": name, "object": "model", "created": created, "owned_by": "tuneloop", "max_model_len": context}


STATUS: dict[str, int] = {
    "TL-SERVE-REQUEST": 400,
    "TL-SERVE-UNSUPPORTED": 400,
    "TL-SERVE-NO-LABELS": 400,
    "TL-SERVE-NO-ANSWER": 400,
    "TL-SERVE-CONTEXT": 400,
    "TL-SERVE-TOKEN": 400,
    "TL-SERVE-ROOM": 400,
    "TL-DATA-TEMPLATE": 400,
    "TL-SERVE-MODEL": 404,
    "TL-SERVE-ROUTE": 404,
    "TL-SERVE-METHOD": 405,
    "TL-SERVE-BODY": 413,
    "TL-SERVE-CLOSING": 503,
    "TL-SERVE-FAILED": 500,
}
"""Code -> HTTP status. Steps of admission name theirs where they refuse; any other code is a fault of the server."""
TYPES: dict[int, str] = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 413: "invalid_request_error", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip
"""HTTP status -> OpenAI's type of error; server_error for any other."""


def status_of(error: TuneloopError) -> int:
    """The HTTP status of an error."""
    named = error.facts.get("status") if isinstance(error, ServeError) else None
    return int(named or STATUS.get(error.code, 500))


def error_body(error: TuneloopError) -> dict[str, Any]:
    """{"error": {"message", "type", "param", "code"}}, the message with its remedy in the chosen language."""
    kind = TYPES.get(status_of(error), "server_error")
    message = sentences(error.what, error.do)
    return {"error": {"message": message, "type": kind, "param": error.facts.get("param"), "code": error.code}}


def _short(field: Any) -> str:
    text = json.dumps(field, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"
