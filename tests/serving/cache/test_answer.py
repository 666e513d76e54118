"""An answer as bytes is the same answer, in fewer pieces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.serving.cache.answer import LONG, CachedAnswer, joined
from tuneloop.serving.engine import CallPiece, Piece, TokenScore
from tuneloop.serving.http.chat_writer import ChatWriter

SCORE = st.builds(
    TokenScore,
    st.integers(0, 99),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.none() | st.floats(-50, 0),
    st.lists(
        st.builds(TokenScore, st.integers(0, 9), st.text(max_size=2), st.binary(max_size=2), st.just(-1.0)), max_size=2
    ).map(tuple),
)
PIECE = st.builds(
    Piece,
    choice=st.integers(0, 2),
    text=st.text(max_size=60),
    thought=st.sampled_from(["", "", "hm ", "我想"]),
    calls=st.lists(
        st.builds(CallPiece, st.integers(0, 1), st.just("call"), st.just("f"), st.text(max_size=4)), max_size=1
    ).map(tuple),
    scores=st.lists(SCORE, max_size=1).map(tuple),
    tokens=st.integers(0, 3),
)


@settings(deadline=None)
@given(st.lists(PIECE, max_size=12))
def test_read_back_it_is_what_was_written(pieces: list[Piece]) -> None:
    pieces += [Piece(choice, finish="stop", tokens=1) for choice in range(3)]
    again = CachedAnswer.read(CachedAnswer(5, tuple(pieces)).as_bytes())
    writer = ChatWriter("m", 3, scored=True)
    usage = {"prompt_tokens": 5, "total_tokens": 5}
    assert writer.completion(again.pieces, usage) == writer.completion(pieces, usage)  # type: ignore[arg-type]
    assert again.prompt_tokens == 5
    assert sum(piece.tokens for piece in again.pieces) == sum(piece.tokens for piece in pieces)
    assert len(again.pieces) <= len(pieces)


def test_a_long_answer_is_still_several_pieces() -> None:
    pieces = [Piece(text="word ", tokens=1) for _ in range(1000)] + [Piece(finish="stop")]
    short = list(joined(pieces))
    assert "".join(piece.text for piece in short) == "word " * 1000
    assert 40 <= len(short) <= 70
    assert all(LONG <= len(piece.text) <= LONG + 5 for piece in short[:-1])


@pytest.mark.parametrize("octets", [b"", b"{}", b'{"prompt":1}', b'{"prompt":1,"pieces":[{"x":1}]}', b"\xff"])
def test_bytes_that_are_none_are_an_error(octets: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        CachedAnswer.read(octets)
