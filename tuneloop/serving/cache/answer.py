"""A finished answer as bytes: its pieces, joined to fewer ones, and the tokens of its prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tuneloop.serving.engine import Piece
from tuneloop.serving.wire import piece_frame, read_piece

LONG = 80
"""Characters from which on a stored piece is not made longer: a hit is streamed in pieces of about a line."""


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """All answers to one query."""

    prompt_tokens: int
    pieces: tuple[Piece, ...]

    def as_bytes(self) -> bytes:
        """JSON.

        >>> answer = CachedAnswer(7, (Piece(text="Hi"), Piece(text="!", tokens=2), Piece(finish="stop")))
        >>> answer.as_bytes()
        b'{"prompt":7,"pieces":[{"text":"Hi!","finish":"stop","tokens":2}]}'
        """
        frames = [piece_frame(piece) for piece in joined(self.pieces)]
        text = json.dumps({"prompt": self.prompt_tokens, "pieces": frames}, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "surrogatepass")

    @classmethod
    def read(cls, octets: bytes) -> CachedAnswer:
        """The answer of `as_bytes`. Raises ValueError, KeyError or TypeError for bytes that are none."""
        frame = json.loads(octets.decode("utf-8", "surrogatepass"))
        return cls(int(frame["prompt"]), tuple(map(read_piece, frame["pieces"])))


def is_finished(pieces: Iterable[Piece], choices: int) -> bool:
    """Whether each of `choices` answers has ended by itself, so that it would end so again.

    >>> is_finished([Piece(0, finish="stop"), Piece(1, finish="length")], 2)
    True
    >>> is_finished([Piece(0, finish="content_filter")], 1), is_finished([Piece(0, "Hi")], 1)
    (False, False)
    """
    ends = {piece.choice: piece.finish for piece in pieces if piece.finish}
    return len(ends) == choices and "content_filter" not in ends.values()


def joined(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """The same answers in fewer pieces: texts that follow each other in one choice are one, up to a line.

    >>> [piece.text for piece in joined([Piece(text="a"), Piece(text="b"), Piece(1, "c"), Piece(text="d")])]
    ['ab', 'c', 'd']
    """
    last: Piece | None = None
    for piece in pieces:
        if last is not None and _follows(last, piece):
            text, thought, tokens = last.text + piece.text, last.thought + piece.thought, last.tokens + piece.tokens
            last = replace(last, text=text, thought=thought, tokens=tokens, finish=piece.finish)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last


def _follows(last: Piece, piece: Piece) -> bool:
    """Whether two pieces can be one, with a thought before a text as it is written out."""
    bare = not (last.calls or piece.calls or last.scores or piece.scores or last.labels or piece.labels)
    short = len(last.text) + len(last.thought) < LONG
    ordered = not (last.text and piece.thought)
    vectors = last.vector is not None or piece.vector is not None
    return bare and short and ordered and not vectors and last.choice == piece.choice and last.finish is None
