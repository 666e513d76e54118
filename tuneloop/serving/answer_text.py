"""One answer on its way from tokens to pieces: text of whole characters, stop texts, scores, and how it ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tuneloop.inference.text_stream import Decode, TextStream
from tuneloop.inference.token_bytes import TokenBytes
from tuneloop.serving.engine import Finish, Piece, TokenScore

Scored = tuple[float | None, Sequence[tuple[int, float]]]
"""A token's logarithm of probability, and (id, logarithm) of the likeliest tokens at its place."""


class AnswerText:
    """The pieces of answer number `choice`. A score goes out with the text of its token."""

    def __init__(self, choice: int, decode: Decode, octets: TokenBytes, stop: Sequence[str] = ()) -> None:
        self.choice = choice
        self._octets = octets
        self._text = TextStream(decode, stop)
        self._scores: deque[TokenScore] = deque()
        """Of tokens whose text is held back."""
        self._tokens = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop text was written: the answer is over."""
        return self._text.stopped

    def feed(self, token: int, scored: Scored | None = None) -> Piece | None:
        """What one more token makes clear; None where nothing is."""
        self._tokens += 1
        if scored is not None:
            self._scores.append(self.score(token, scored))
        new = self._text.feed(token)
        if self.stopped:
            self._cut(len(new.encode("utf-8", "replace")))
        scores = () if self._text.held else self._drained()
        return Piece(self.choice, new, scores=scores) if new or scores else None

    def ended(self, token: int, scored: Scored | None = None) -> None:
        """An end token, which is no text; its score, where one is given, goes out with the last piece."""
        self._tokens += 1
        if scored is not None:
            self._scores.append(self.score(token, scored))

    def end(self, finish: Finish) -> Piece:
        """The last piece."""
        return Piece(self.choice, self._text.end(), scores=self._drained(), finish=finish, tokens=self._tokens)

    def echoed(self, text: str, prompt: Sequence[int], scored: Sequence[Scored]) -> Piece:
        """The prompt before the answer, with its scores where there are any."""
        pairs = zip(prompt, scored, strict=True) if scored else ()
        return Piece(self.choice, text, scores=tuple(self.score(*pair) for pair in pairs))

    def score(self, token: int, scored: Scored) -> TokenScore:
        """A token's score with its text and bytes, and those of the likeliest."""
        logprob, likeliest = scored
        others = tuple(self._named(other, chance, ()) for other, chance in likeliest)
        return self._named(token, logprob, others)

    def _named(self, token: int, logprob: float | None, likeliest: tuple[TokenScore, ...]) -> TokenScore:
        octets = self._octets[token]
        return TokenScore(token, octets.decode("utf-8", "replace"), octets, logprob, likeliest)

    def _cut(self, octets: int) -> None:
        """Leave out the scores of tokens behind so many bytes of the text that was held: they are the stop text's."""
        shown, scores = 0, deque[TokenScore]()
        for score in self._scores:
            if shown < octets:
                scores.append(score)
            shown += len(score.octets)
        self._scores = scores

    def _drained(self) -> tuple[TokenScore, ...]:
        scores = tuple(self._scores)
        self._scores.clear()
        return scores
