"""Writes the answers to a chat: whole, or as chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tuneloop.base.errors import ServeError
from tuneloop.serving.engine import CallPiece, Finish, Piece, TokenScore
from tuneloop.serving.http.shapes import (
    AnswerMessage,
    CallDelta,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    ChunkChoice,
    FunctionCall,
    FunctionDelta,
    LikelyToken,
    ScoredToken,
    TokenUsage,
    ToolCall,
)

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON has not; as OpenAI's API has it."""


def logprob(score: TokenScore) -> float:
    """The logarithm of a token's probability as JSON can say it; 0 for a prompt's first token, which has none."""
    return max(LEAST_LOGPROB, score.logprob if score.logprob is not None else 0.0)


def _likely(score: TokenScore) -> LikelyToken:
    return {"token": score.text, "logprob": logprob(score), "bytes": list(score.octets)}


def _scored(score: TokenScore) -> ScoredToken:
    return {**_likely(score), "top_logprobs": [_likely(one) for one in score.likeliest]}


def _logprobs(scores: Sequence[TokenScore]) -> ChatLogprobs:
    return {"content": [_scored(score) for score in scores], "refusal": None}


def _call_delta(piece: CallPiece) -> CallDelta:
    if not piece.name:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function: FunctionDelta = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}


@dataclass(slots=True)
class _Choice:
    """An answer that is put together from its pieces."""

    text: str = ""
    thought: str = ""
    calls: dict[int, ToolCall] = field(default_factory=dict)
    scores: list[TokenScore] = field(default_factory=list)
    finish: Finish | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.thought += piece.thought
        self.scores += piece.scores
        self.finish = piece.finish or self.finish
        for part in piece.calls:
            if part.name:
                function: FunctionCall = {"name": part.name, "arguments": ""}
                self.calls[part.index] = {"id": part.id, "type": "function", "function": function}
            self.calls[part.index]["function"]["arguments"] += part.arguments

    @property
    def message(self) -> AnswerMessage:
        message: AnswerMessage = {"role": "assistant", "content": self.text, "refusal": None}
        if self.thought:
            message["reasoning_content"] = self.thought
        if self.calls:
            message["content"] = self.text or None
            message["tool_calls"] = [self.calls[k] for k in sorted(self.calls)]
        return message


class ChatWriter:
    """Writes the answers to one request: whole, or as events that share an id."""

    def __init__(self, model: str, choices: int = 1, *, scored: bool = False) -> None:
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._model, self._choices, self._scored = model, choices, scored

    def completion(self, pieces: Iterable[Piece], usage: TokenUsage) -> ChatCompletion:
        """The body of answers that are not streamed. Raises TL-SERVE-FAILED where one has not ended."""
        answers = [_Choice() for _ in range(self._choices)]
        for piece in pieces:
            answers[piece.choice].add(piece)
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self._model,
            "choices": [self._choice(k, answer) for k, answer in enumerate(answers)],
            "usage": usage,
        }

    def _choice(self, index: int, answer: _Choice) -> ChatChoice:
        if answer.finish is None:
            raise ServeError("TL-SERVE-FAILED", error="the answer has no end")
        logprobs = _logprobs(answer.scores) if self._scored else None
        return {"index": index, "message": answer.message, "logprobs": logprobs, "finish_reason": answer.finish}

    def first(self) -> Iterator[ChatCompletionChunk]:
        """The chunks that open the choices."""
        for index in range(self._choices):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def chunks(self, piece: Piece) -> Iterator[ChatCompletionChunk]:
        """The chunks of a piece: what is new, and the reason at a choice's end."""
        delta: ChatDelta = {}
        if piece.thought:
            delta["reasoning_content"] = piece.thought
        if piece.text:
            delta["content"] = piece.text
        if piece.calls:
            delta["tool_calls"] = [_call_delta(part) for part in piece.calls]
        if delta or (self._scored and piece.scores):
            yield self._chunk(piece.choice, delta, _logprobs(piece.scores) if self._scored and piece.scores else None)
        if piece.finish:
            yield self._chunk(piece.choice, {}, None, piece.finish)

    def usage_chunk(self, usage: TokenUsage) -> ChatCompletionChunk:
        """The chunk with the token counts and no choice, for include_usage."""
        return {**self._chunk(0, {}), "choices": [], "usage": usage}

    def _chunk(
        self, index: int, delta: ChatDelta, logprobs: ChatLogprobs | None = None, finish: Finish | None = None
    ) -> ChatCompletionChunk:
        choice: ChunkChoice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self._model,
            "choices": [choice],
        }
