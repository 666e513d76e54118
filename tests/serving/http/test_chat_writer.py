"""What the answers to a chat look like, whole and in chunks."""

from __future__ import annotations

import json
import math
from typing import Any, cast

import pytest

from tuneloop.base.errors import ServeError
from tuneloop.serving.engine import CallPiece, Piece, TokenScore
from tuneloop.serving.http.chat_writer import LEAST_LOGPROB, ChatWriter
from tuneloop.serving.http.events import event
from tuneloop.serving.http.shapes import TokenUsage

USAGE: TokenUsage = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
PIECES = [Piece(text="Hi"), Piece(text=" 🪨"), Piece(finish="stop", tokens=4)]
CALLS = [
    Piece(thought="hm"),
    Piece(calls=(CallPiece(0, "c0", "f"), CallPiece(0, arguments='{"x":'))),
    Piece(calls=(CallPiece(0, arguments=" 1}"), CallPiece(1, "c1", "g", "{}"))),
    Piece(finish="tool_calls", tokens=9),
]


def test_a_whole_answer() -> None:
    body = ChatWriter("m").completion(PIECES, USAGE)
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hi 🪨", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["choices"][0]["logprobs"] is None
    assert body["usage"] == USAGE


def test_thoughts_and_calls() -> None:
    message = ChatWriter("m").completion(CALLS, USAGE)["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning_content"] == "hm"
    assert message["tool_calls"] == [
        {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"id": "c1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    assert ChatWriter("m").completion([Piece(text="So:"), *CALLS], USAGE)["choices"][0]["message"]["content"] == "So:"


def test_choices_that_come_mixed() -> None:
    pieces = [Piece(1, "b"), Piece(0, "a"), Piece(1, "B"), Piece(1, finish="length"), Piece(0, finish="stop")]
    choices = ChatWriter("m", 2).completion(pieces, USAGE)["choices"]
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in choices] == [
        (0, "a", "stop"),
        (1, "bB", "length"),
    ]


def test_an_answer_without_an_end_is_none() -> None:
    with pytest.raises(ServeError, match="TL-SERVE-FAILED"):
        ChatWriter("m", 2).completion(PIECES, USAGE)


def test_the_chunks_of_an_answer_share_its_id() -> None:
    writer = ChatWriter("m", 2)
    chunks = [*writer.first(), *(c for p in PIECES for c in writer.chunks(p)), writer.usage_chunk(USAGE)]
    assert len({c["id"] for c in chunks}) == 1
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert [c["choices"][0]["index"] for c in chunks[:2]] == [0, 1]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == USAGE


def test_chunks_of_calls() -> None:
    writer = ChatWriter("m")
    deltas = [cast(Any, c["choices"][0]["delta"]) for p in CALLS for c in writer.chunks(p)]
    assert deltas[0] == {"reasoning_content": "hm"}
    first, second = deltas[1]["tool_calls"]
    assert first == {"index": 0, "id": "c0", "type": "function", "function": {"name": "f", "arguments": ""}}
    assert second == {"index": 0, "function": {"arguments": '{"x":'}}
    assert deltas[-1] == {}
    assert list(writer.chunks(Piece())) == [], "nothing new, no chunk"


def test_log_probabilities() -> None:
    score = TokenScore(5, "a", b"a", -0.5, (TokenScore(6, "\ufffd", b"\xe4", -math.inf),))
    choice = ChatWriter("m", scored=True).completion([Piece(text="a", scores=(score,)), Piece(finish="stop")], USAGE)[
        "choices"
    ][0]
    assert choice["logprobs"] == {
        "content": [{"token": "a", "logprob": -0.5, "bytes": [97],
                     "top_logprobs": [{"token": "\ufffd", "logprob": LEAST_LOGPROB, "bytes": [0xE4]}]}],
        "refusal": None,
    }  # fmt: skip
    chunk = next(ChatWriter("m", scored=True).chunks(Piece(scores=(score,))))
    assert chunk["choices"][0]["delta"] == {}
    assert chunk["choices"][0]["logprobs"] is not None
    assert list(ChatWriter("m").chunks(Piece(scores=(score,)))) == []


def test_an_event_is_one_line() -> None:
    written = event({"text": "a\nb\r\n\u2028\u0085 🪨"})
    assert written.endswith("\n\n")
    assert written.count("\n") == 2
    assert json.loads(written.removeprefix("data: ")) == {"text": "a\nb\r\n\u2028\u0085 🪨"}
