"""What an OpenAI-compatible server streams, as pieces of answers. It may send anything: what is not of the API's form
is an error, and no number or text of it goes on unlooked at."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tuneloop.serving.engine import CallPiece, Finish, Piece, Query, TokenScore

_FINISHES: dict[str, Finish] = {
    "stop": "stop", "length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls",
    "content_filter": "content_filter", "eos": "stop", "max_tokens": "length",
}  # fmt: skip
_BROKEN_OFF = {"abort", "error", "cancelled"}
MOST_CALLS = 512


class OddAnswer(ValueError):
    """What a server sent is not of the API's form; its words say where."""


class AnswerReader:
    """Reads the events of one request's answers, in order. `ending` gives what is left when they end."""

    def __init__(self, query: Query) -> None:
        self._chat, self._n = query.purpose == "chat", query.n
        self.prompt_tokens = self.cached_tokens = 0
        self._written = [0] * query.n
        """Events with something in them, by choice: about a token each."""
        self._finished: dict[int, Finish] = {}
        self._held: Piece | None = None
        self._own = 0
        self._total: int | None = None

    def pieces(self, event: Mapping[str, Any]) -> list[Piece]:
        """What is new with an event. Raises OddAnswer."""
        choices = event.get("choices")
        if not isinstance(choices, list):
            raise OddAnswer("choices")
        usage = event.get("usage")
        if isinstance(usage, dict):
            self._count(usage, own=len(choices) == 1)
        out: list[Piece] = []
        for choice in choices:
            out += self._choice(choice)
        return out

    def ending(self) -> list[Piece]:
        """The last piece, with its tokens. Raises OddAnswer where a choice has not finished."""
        if len(self._finished) < self._n or self._held is None:
            raise OddAnswer("finish_reason")
        before = sum(self._written) - self._written[self._held.choice]
        tokens = self._written[self._held.choice] if self._total is None else max(0, self._total - before)
        return [Piece(choice=self._held.choice, finish=self._held.finish, tokens=tokens)]

    def _choice(self, choice: Any) -> list[Piece]:
        if not isinstance(choice, dict):
            raise OddAnswer("choices")
        index = choice.get("index", 0)
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < self._n:
            raise OddAnswer("index")
        delta = _object(choice.get("delta"), "delta") if self._chat else choice
        scores = _scores(choice.get("logprobs"))
        piece = Piece(
            choice=index,
            text=_text(delta.get("content" if self._chat else "text"), "content"),
            thought=_text(delta.get("reasoning_content") or delta.get("reasoning"), "reasoning_content"),
            calls=_calls(delta.get("tool_calls")) if self._chat else (),
            scores=scores,
        )
        out: list[Piece] = []
        if (piece.text or piece.thought or piece.calls or piece.scores) and index not in self._finished:
            self._written[index] += len(scores) or 1
            out.append(piece)
        reason = choice.get("finish_reason")
        if reason is not None and index not in self._finished:
            if not isinstance(reason, str) or reason in _BROKEN_OFF:
                raise OddAnswer("finish_reason")
            self._finished[index] = _FINISHES.get(reason, "stop")
            self._written[index] = self._own or self._written[index]
            last = Piece(choice=index, finish=self._finished[index], tokens=self._written[index])
            # The tokens of all choices come after the last one: until then its finish is held back.
            if len(self._finished) < self._n:
                out.append(last)
            else:
                self._held = last
        return out

    def _count(self, usage: Mapping[str, Any], *, own: bool) -> None:
        """Token counts. Others send those of all choices once, after the last; llama.cpp sends those of each choice, of
        texts with its finish, of chats behind it."""
        self.prompt_tokens = _whole_number(usage.get("prompt_tokens"))
        tokens = _whole_number(usage.get("completion_tokens"))
        self._own = tokens if own else 0
        if self._n == 1:
            self._total = tokens
        elif not own:
            self._total = tokens + (self._total or 0)
        details = usage.get("prompt_tokens_details")
        self.cached_tokens = _whole_number(details.get("cached_tokens")) if isinstance(details, dict) else 0


def vector_piece(reply: Any) -> tuple[Piece, int]:
    """The embedding in an answer of /embeddings, and its prompt's tokens. Raises OddAnswer.

    >>> vector_piece({"data": [{"embedding": [1, 2.5]}], "usage": {"prompt_tokens": 3}})[0].vector
    (1.0, 2.5)
    """
    listed = _object(reply, "answer").get("data")
    if not isinstance(listed, list) or len(listed) != 1:
        raise OddAnswer("data")
    numbers = _object(listed[0], "data").get("embedding")
    if not isinstance(numbers, list) or not numbers or not all(map(_is_number, numbers)):
        raise OddAnswer("embedding")
    usage = reply.get("usage")
    tokens = _whole_number(usage.get("prompt_tokens")) if isinstance(usage, dict) else 0
    return Piece(vector=tuple(map(float, numbers)), finish="stop"), tokens


def clean(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON can hold and UTF-8 cannot.

    >>> clean("好"), clean("a\\ud800")
    ('好', 'a?')
    """
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _object(given: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise OddAnswer(name)
    return given


def _text(given: Any, name: str) -> str:
    if given is None:
        return ""
    if not isinstance(given, str):
        raise OddAnswer(name)
    return clean(given)


def _is_number(given: Any) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)


def _whole_number(given: Any) -> int:
    return given if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 1 << 40 else 0


def _calls(given: Any) -> tuple[CallPiece, ...]:
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) > MOST_CALLS:
        raise OddAnswer("tool_calls")
    return tuple(_call(call, place) for place, call in enumerate(given))


def _call(given: Any, place: int) -> CallPiece:
    call = _object(given, "tool_calls")
    index = call.get("index")
    index = place if index is None else index
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < MOST_CALLS:
        raise OddAnswer("tool_calls.index")
    function = _object(call.get("function") or {}, "tool_calls.function")
    arguments = function.get("arguments")
    if isinstance(arguments, dict):  # not as the API has it, but plain enough
        arguments = json.dumps(arguments, ensure_ascii=False)
    return CallPiece(
        index,
        _text(call.get("id"), "tool_calls.id"),
        _text(function.get("name"), "tool_calls.function.name"),
        _text(arguments, "tool_calls.function.arguments"),
    )


def _scores(given: Any) -> tuple[TokenScore, ...]:
    """Log probabilities in the form of chats, which some servers also give to texts, or in the older one of texts."""
    if given is None:
        return ()
    fields = _object(given, "logprobs")
    if isinstance(fields.get("tokens"), list):
        return _old_scores(fields)
    content = fields.get("content")
    if content is None:
        return ()
    if not isinstance(content, list):
        raise OddAnswer("logprobs.content")
    return tuple(score_of(one) for one in content)


def score_of(given: Any, *, alternatives: bool = True) -> TokenScore:
    """One token of OpenAI's logprobs; llama.cpp adds its `id`, else that is -1. Raises OddAnswer."""
    fields = _object(given, "logprobs.content")
    text, number, token = _text(fields.get("token"), "logprobs.token"), fields.get("logprob"), fields.get("id")
    octets = fields.get("bytes")
    if octets is not None and not (isinstance(octets, list) and all(type(n) is int and 0 <= n < 256 for n in octets)):
        raise OddAnswer("logprobs.bytes")
    likeliest = fields.get("top_logprobs") or []
    if not isinstance(likeliest, list):
        raise OddAnswer("logprobs.top_logprobs")
    return TokenScore(
        token if type(token) is int else -1,
        text,
        text.encode() if octets is None else bytes(octets),
        _logprob(number),
        tuple(score_of(one, alternatives=False) for one in likeliest) if alternatives else (),
    )


def _logprob(number: Any) -> float | None:
    if number is None:
        return None
    if not _is_number(number):
        raise OddAnswer("logprobs.logprob")
    return float(number)


def _old_scores(fields: Mapping[str, Any]) -> tuple[TokenScore, ...]:
    """{"tokens": […], "token_logprobs": […], "top_logprobs": [{token: number}]}."""
    tokens, numbers = fields["tokens"], fields.get("token_logprobs")
    tops = fields.get("top_logprobs") or [None] * len(tokens)
    if not (isinstance(numbers, list) and isinstance(tops, list) and len(tokens) == len(numbers) == len(tops)):
        raise OddAnswer("logprobs")
    out = []
    for token, number, top in zip(tokens, numbers, tops, strict=True):
        text = _text(token, "logprobs.tokens")
        ranked = sorted(_object(top or {}, "logprobs.top_logprobs").items(), key=lambda pair: -(_logprob(pair[1]) or 0))
        likeliest = tuple(TokenScore(-1, clean(name), clean(name).encode(), _logprob(n)) for name, n in ranked)
        out.append(TokenScore(-1, text, text.encode(), _logprob(number), likeliest))
    return tuple(out)
