"""One answer on its way from tokens to pieces: text of whole characters, stop texts, scores, and how it ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tuneloop.inference.text_stream import Decode, TextStream
from tuneloop.inference.token_bytes import TokenBytes
from tuneloop.serving.answers.parsing import AnswerParser
from tuneloop.serving.engine import CallPiece, Finish, Piece, TokenScore

Scored = tuple[float | None, Sequence[tuple[int, float]]]
"""A token's logarithm of probability, and (id, logarithm) of the likeliest tokens at its place."""


class AnswerText:
    """The pieces of answer number `choice`. A score goes out with the text of its token."""

    def __init__(
        self,
        choice: int,
        decode: Decode,
        octets: TokenBytes,
        stop: Sequence[str] = (),
        parser: AnswerParser | None = None,
    ) -> None:
        self.choice = choice
        self._octets, self._parser = octets, parser
        self._text = TextStream(decode, stop)
        self._scores: deque[TokenScore] = deque()
        """Of tokens whose text is held back."""
        self._tokens = 0

    @property
    def stopped(self) -> bool:
        """Whether the answer is over: a stop text was written, or the one call that was wanted."""
        return self._text.stopped or (self._parser is not None and self._parser.done)

    def feed(self, token: int, scored: Scored | None = None) -> Piece | None:
        """What one more token makes clear; None where nothing is."""
        self._tokens += 1
        if scored is not None:
            self._scores.append(self.score(token, scored))
        new = self._text.feed(token)
        if self._text.stopped:
            self._cut(len(new.encode("utf-8", "replace")))
        scores = () if self._text.held else self._drained()
        return self._piece(new, scores) if new or scores else None

    def begun(self, text: str) -> Piece | None:
        """Text that the answer was made to begin with."""
        return self._piece(text, ())

    def ended(self, token: int, scored: Scored | None = None) -> None:
        """An end token, which is no text; its score, where one is given, goes out with the last piece."""
        self._tokens += 1
        if scored is not None:
            self._scores.append(self.score(token, scored))

    def end(self, finish: Finish) -> Piece:
        """The last piece."""
        text, thought, calls = self._text.end(), "", list[CallPiece]()
        if self._parser is not None:
            deltas = self._parser.feed(text), self._parser.end()
            text, thought = ("".join(part) for part in zip(*((one.text, one.thought) for one in deltas), strict=True))
            calls = [call for one in deltas for call in one.calls]
            finish = "tool_calls" if self._parser.called and finish == "stop" else finish
        return Piece(self.choice, text, thought, tuple(calls), self._drained(), finish=finish, tokens=self._tokens)

    def _piece(self, text: str, scores: tuple[TokenScore, ...]) -> Piece | None:
        """The text taken apart; None where nothing of it is clear yet."""
        if self._parser is None:
            return Piece(self.choice, text, scores=scores)
        delta = self._parser.feed(text)
        return Piece(self.choice, delta.text, delta.thought, delta.calls, scores) if delta or scores else None

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
