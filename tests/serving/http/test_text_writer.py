"""Continuations of texts, with log-probabilities in the older shape."""

from __future__ import annotations

import math

import pytest

from tuneloop.base.errors import ServeError
from tuneloop.serving.engine import Piece, TokenScore
from tuneloop.serving.http.shapes import TokenUsage
from tuneloop.serving.http.text_writer import TextWriter

USAGE: TokenUsage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def score(text: str, octets: bytes, logprob: float | None, *likeliest: TokenScore) -> TokenScore:
    return TokenScore(0, text, octets, logprob, likeliest)


STONE = "岩".encode()
SCORES = (
    score("a", b"a", None),
    score("\ufffd", STONE[:2], -1.0, score("b", b"b", -0.25)),
    score("\ufffd", STONE[2:], -0.5, score("\ufffd", STONE[2:], -0.5)),
    score("z", b"z", -math.inf, score("c", b"c", -0.125)),
)
PIECES = [Piece(0, "a岩", scores=SCORES[:3]), Piece(0, "z", scores=SCORES[3:]), Piece(0, finish="length", tokens=1)]


def test_a_whole_continuation() -> None:
    body = TextWriter("m", likeliest=1).completion(PIECES, USAGE)
    assert (body["object"], body["usage"]) == ("text_completion", USAGE)
    choice = body["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("a岩z", "length")
    assert choice["logprobs"] == {
        "tokens": ["a", "bytes:\\xe5\\xb2", "bytes:\\xa9", "z"],
        "token_logprobs": [None, -1.0, -0.5, -9999.0],
        "top_logprobs": [
            None,
            {"b": -0.25, "bytes:\\xe5\\xb2": -1.0},
            {"bytes:\\xa9": -0.5},
            {"c": -0.125, "z": -9999.0},
        ],
        "text_offset": [0, 1, 1, 2],
    }
    assert choice["logprobs"] is not None
    assert [body["choices"][0]["text"][at] for at in choice["logprobs"]["text_offset"]] == ["a", "岩", "岩", "z"]


def test_what_was_not_asked_for_is_not_there() -> None:
    assert TextWriter("m").completion(PIECES, USAGE)["choices"][0]["logprobs"] is None
    none = TextWriter("m", likeliest=0).completion(PIECES, USAGE)["choices"][0]["logprobs"]
    assert none is not None
    assert none["top_logprobs"] is None
    assert none["token_logprobs"][1:3] == [-1.0, -0.5]


def test_chunks_go_on_where_the_last_one_ended() -> None:
    writer = TextWriter("m", 2, likeliest=1)
    chunks = [c for p in PIECES for c in writer.chunks(p)]
    assert list(writer.first()) == []
    assert "".join(c["choices"][0]["text"] for c in chunks) == "a岩z"
    offsets = [at for c in chunks if (scores := c["choices"][0]["logprobs"]) for at in scores["text_offset"]]
    assert offsets == [0, 1, 1, 2]
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, None, "length"]
    assert len({c["id"] for c in chunks}) == 1
    other = next(writer.chunks(Piece(1, "a", scores=SCORES[:1])))["choices"][0]["logprobs"]
    assert other is not None
    assert other["text_offset"] == [0], "each choice counts by itself"
    assert writer.usage_chunk(USAGE)["choices"] == []


def test_a_continuation_without_an_end_is_none() -> None:
    with pytest.raises(ServeError, match="TL-SERVE-FAILED"):
        TextWriter("m", 2).completion(PIECES, USAGE)
