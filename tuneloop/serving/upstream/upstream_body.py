"""A query as the body of a request to an OpenAI-compatible server. Fields that say nothing are left out: not every
server knows all of them."""

from __future__ import annotations

import json
from typing import Any

from tuneloop.base.errors import ServeError
from tuneloop.base.records import Sampling
from tuneloop.data.tokens.templates import Chat
from tuneloop.serving.engine import Query

PATHS = {"chat": "/chat/completions", "text": "/completions", "vector": "/embeddings"}


def body_of(query: Query) -> tuple[str, dict[str, Any]]:
    """The path and the body. Answers are streamed, whatever the client wants: the status comes before the first token.

    Raises TL-SERVE-UNSUPPORTED for a task that the API does not have.

    >>> body_of(Query("vector", "m", prompt="Hi"))
    ('/embeddings', {'model': 'm', 'input': 'Hi', 'encoding_format': 'float'})
    >>> body_of(Query("text", "m", prompt=(1, 2), max_new_tokens=5))[1]["prompt"]
    [1, 2]
    """
    path = PATHS.get(query.purpose)
    if path is None:
        raise ServeError("TL-SERVE-UNSUPPORTED", where="model", param="model", got=query.model)
    prompt = query.prompt if isinstance(query.prompt, str) else list(query.prompt)
    if query.purpose == "vector":
        return path, {"model": query.model, "input": prompt, "encoding_format": "float"}
    body = {"model": query.model, "stream": True, "stream_options": {"include_usage": True}, **_common(query)}
    if query.purpose == "text":
        body |= {"prompt": prompt}
        body |= {"echo": True} if query.echo else {}
        body |= {"logprobs": query.logprobs} if query.logprobs is not None else {}
        return path, body
    body["messages"] = _messages(query.chat)
    if query.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": query.logprobs}
    if query.tools:
        body |= {"tools": list(query.tools), "tool_choice": _choice(query.tool_choice)}
        body |= {} if query.parallel_tool_calls else {"parallel_tool_calls": False}
    if query.thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": query.thinking}
    return path, body


def _common(query: Query) -> dict[str, Any]:
    """What chats and texts have alike."""
    fields: dict[str, Any] = sampling_fields(query.sampling)
    fields |= {"max_tokens": query.max_new_tokens} if query.max_new_tokens is not None else {}
    fields |= {"n": query.n} if query.n != 1 else {}
    fields |= {"stop": list(query.stop)} if query.stop else {}
    fields |= {"user": query.user} if query.user else {}
    if query.schema is not None:
        fields["response_format"] = _format(dict(query.schema))
    return fields


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """Sampling in the words that OpenAI, vLLM and SGLang share.

    >>> sampling_fields(Sampling(top_k=5, logit_bias=((7, -1.0),)))
    {'temperature': 0.0, 'top_k': 5, 'logit_bias': {'7': -1.0}}
    """
    neutral = Sampling()
    fields = {"temperature": sampling.temperature}
    for name in ("top_p", "seed", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"):
        if (number := getattr(sampling, name)) != getattr(neutral, name):
            fields[name] = number
    bias = {str(token): number for token, number in sampling.logit_bias}
    return {**fields, "logit_bias": bias} if bias else fields


def _format(schema: dict[str, Any]) -> dict[str, Any]:
    if not schema:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def _choice(choice: str) -> Any:
    """
    >>> _choice("auto"), _choice("look_up")
    ('auto', {'type': 'function', 'function': {'name': 'look_up'}})
    """
    known = choice in {"none", "auto", "required"}
    return choice if known else {"type": "function", "function": {"name": choice}}


def _messages(chat: Chat) -> Chat:
    """The chat with the arguments of its calls as JSON text: here they are objects, as templates want them."""
    return [
        {**turn, "tool_calls": [_written(call) for call in turn["tool_calls"]]} if turn.get("tool_calls") else turn
        for turn in chat
    ]


def _written(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or isinstance(function.get("arguments"), str):
        return call
    arguments = json.dumps(function.get("arguments", {}), ensure_ascii=False)
    return {"type": "function", **call, "function": {**function, "arguments": arguments}}
