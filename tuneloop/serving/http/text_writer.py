"""Writes continuations of texts, with the log-probabilities in the older shape of /v1/completions."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence

from tuneloop.base.errors import ServeError
from tuneloop.serving.engine import Finish, Piece, TokenScore
from tuneloop.serving.http.chat_writer import logprob
from tuneloop.serving.http.shapes import TextChoice, TextCompletion, TextLogprobs, TokenUsage


def token_name(score: TokenScore) -> str:
    """A token's text; one that is no whole character by its bytes, as OpenAI's API has it.

    >>> token_name(TokenScore(5, "\\ufffd", b"\\xe4\\xb8", -1.0)), token_name(TokenScore(6, "a", b"a", -1.0))
    ('bytes:\\\\xe4\\\\xb8', 'a')
    """
    try:
        score.octets.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{octet:02x}" for octet in score.octets)
    return score.text


class _Offsets:
    """Where each token begins in a choice's text, in characters: token by token, though some are parts of one."""

    def __init__(self) -> None:
        self._decoder, self._at = codecs.getincrementaldecoder("utf-8")("replace"), 0

    def next(self, octets: bytes) -> int:
        """The offset of a token; its bytes follow those of the one before."""
        at = self._at
        self._at += len(self._decoder.decode(octets))
        return at


class TextWriter:
    """Writes the continuations of one request: whole, or as events that share an id."""

    def __init__(self, model: str, choices: int = 1, *, likeliest: int | None = None) -> None:
        self.id, self.created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self._model, self._likeliest = model, likeliest
        self._offsets = [_Offsets() for _ in range(choices)]

    def completion(self, pieces: Iterable[Piece], usage: TokenUsage) -> TextCompletion:
        """The body of continuations that are not streamed. Raises TL-SERVE-FAILED where one has not ended."""
        texts = [""] * len(self._offsets)
        scores: list[list[TokenScore]] = [[] for _ in texts]
        finishes: list[Finish | None] = [None] * len(texts)
        for piece in pieces:
            texts[piece.choice] += piece.text
            scores[piece.choice] += piece.scores
            finishes[piece.choice] = piece.finish or finishes[piece.choice]
        if None in finishes:
            raise ServeError("TL-SERVE-FAILED", error="the answer has no end")
        choices = [self._choice(k, text, scores[k], finishes[k]) for k, text in enumerate(texts)]
        return {**self._body(choices), "usage": usage}

    def first(self) -> Iterator[TextCompletion]:
        """Nothing comes before the first text."""
        return iter(())

    def chunks(self, piece: Piece) -> Iterator[TextCompletion]:
        """The chunk of a piece, unless nothing is new in it."""
        if piece.text or piece.finish or (piece.scores and self._likeliest is not None):
            yield self._body([self._choice(piece.choice, piece.text, piece.scores, piece.finish)])

    def usage_chunk(self, usage: TokenUsage) -> TextCompletion:
        """The chunk with the token counts and no choice, for include_usage."""
        return {**self._body([]), "usage": usage}

    def _choice(self, index: int, text: str, scores: Sequence[TokenScore], finish: Finish | None) -> TextChoice:
        logprobs = self._logprobs(index, scores) if self._likeliest is not None else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, index: int, scores: Sequence[TokenScore]) -> TextLogprobs:
        return {
            "tokens": [token_name(score) for score in scores],
            "token_logprobs": [None if score.logprob is None else logprob(score) for score in scores],
            "top_logprobs": [self._top(score) for score in scores] if self._likeliest else None,
            "text_offset": [self._offsets[index].next(score.octets) for score in scores],
        }

    def _top(self, score: TokenScore) -> dict[str, float] | None:
        """The likeliest tokens, and the token itself; None for a prompt's first token, which nothing foresaw."""
        if score.logprob is None:
            return None
        top: dict[str, float] = {}
        for one in (*score.likeliest, score):
            top.setdefault(token_name(one), logprob(one))
        return top

    def _body(self, choices: list[TextChoice]) -> TextCompletion:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self._model,
            "choices": choices,
        }
