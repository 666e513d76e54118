"""The API's shapes: what is taken, what is refused and how, and what an answer looks like."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from tuneloop.base.errors import FAMILIES, DataError, ServeError, catalogue
from tuneloop.base.language import speaking
from tuneloop.base.records import Reply
from tuneloop.serving.body_faults import fault_words
from tuneloop.serving.schemas import (
    STATUS,
    ChatRequest,
    ResponseWriter,
    answer_budget,
    error_body,
    event,
    status_of,
    usage,
)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"model": "m", "messages": []}', "至少要有 1 项"),
        ('{"model": "m"}', "缺少这个字段"),
        ('{"model": 1, "messages": [{"role": "user", "content": "x"}]}', "应当是文字"),
        ('{"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 9}', "要求："),
        ("{", "不是 JSON"),
    ],
)
def test_what_is_wrong_with_a_body_is_said_in_the_readers_language(body: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate_json(body)
    with speaking("zh"):
        assert words in fault_words(dict(caught.value.errors(include_url=False, include_input=False)[0]))


REPLY = Reply("Hi 🪨", 10, 4, "stop", 0.5)


def parse(**more: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **more}
    return ChatRequest.model_validate_json(json.dumps(body))


def test_a_plain_request() -> None:
    request = parse()
    assert request.chat() == [{"role": "user", "content": "Hi"}]
    assert (request.wanted, request.stops, request.seed, request.stream) == (None, (), None, None)
    assert request.sampling_temperature == 0.0


def test_everything_that_is_supported() -> None:
    request = parse(
        max_tokens=7, temperature=0.5, top_p=0.9, stop=["a", "b"], seed=3, stream=True,
        stream_options={"include_usage": True}, user="u", n=1,
    )  # fmt: skip
    assert (request.wanted, request.stops, request.top_p, request.seed) == (7, ("a", "b"), 0.9, 3)
    assert request.sampling_temperature == 0.5
    assert request.stream_options is not None
    assert request.stream_options.include_usage
    assert parse(max_completion_tokens=9, max_tokens=7).wanted == 9
    assert parse(stop="x").stops == ("x",)


def test_messages_become_what_a_template_takes() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "kim"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]
    assert parse(messages=messages).chat() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ab", "name": "kim"},
        {"role": "assistant", "content": "", "tool_calls": [{**call, "function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
        ({"messages": "Hi"}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "7"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, ""),
        ({"temprature": 1}, "temprature"),
        ({"model": None}, "model"),
    ],
)
def test_what_is_refused_names_its_place(more: dict[str, Any], place: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(**more)
    places = {".".join(str(p) for p in e["loc"]) for e in caught.value.errors()}
    assert any(p.startswith(place) for p in places), places


@pytest.mark.parametrize("body", ["", "{", "[]", "null", '{"model": "m"}', '{"model": "m", "messages": [1]}'])
def test_bodies_that_are_no_request(body: str) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate_json(body)


def test_half_a_surrogate_pair_is_refused() -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "\\ud83d"}]}'
    with pytest.raises(ValidationError):
        ChatRequest.model_validate_json(body)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n", 2), ("tools", [{"type": "function"}]), ("response_format", {"type": "json_object"}), ("logprobs", True),
        ("frequency_penalty", 0.5), ("presence_penalty", -1), ("logit_bias", {"5": 1}), ("tool_choice", "required"),
    ],
)  # fmt: skip
def test_what_would_change_the_answer_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ServeError) as caught:
        parse(**{key: value})
    assert caught.value.code == "TL-SERVE-UNSUPPORTED"
    assert error_body(caught.value)["error"]["param"] == key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n", 1), ("n", None), ("tools", []), ("response_format", {"type": "text"}), ("logprobs", False),
        ("frequency_penalty", 0), ("presence_penalty", 0.0), ("logit_bias", {}), ("tool_choice", "auto"),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_taken(key: str, value: Any) -> None:
    assert parse(**{key: value}).chat()


def test_temperatures_too_cold_to_sample_are_greedy() -> None:
    assert parse(temperature=1e-9).sampling_temperature == 0.0
    assert parse(temperature=0).sampling_temperature == 0.0
    assert parse(temperature=0.01).sampling_temperature == 0.01


def test_room_for_the_answer() -> None:
    assert answer_budget(parse(), 10, 100, 1024) == 90
    assert answer_budget(parse(), 10, 100_000, 1024) == 1024
    assert answer_budget(parse(max_tokens=90), 10, 100, 5) == 90
    with pytest.raises(ServeError) as caught:
        answer_budget(parse(max_tokens=91), 10, 100, 1024)
    assert caught.value.code == "TL-SERVE-ROOM"
    assert "90" in str(caught.value)
    for full in (100, 101):
        with pytest.raises(ServeError, match="TL-SERVE-CONTEXT"):
            answer_budget(parse(), full, 100, 1024)


def test_a_whole_answer() -> None:
    body = ResponseWriter("m").completion(REPLY)
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hi 🪨", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == usage(REPLY) == {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}


def test_the_chunks_of_an_answer_share_its_id() -> None:
    writer = ResponseWriter("m")
    events = [writer.chunk({"role": "assistant", "content": ""}), writer.chunk({}, "stop"), writer.usage_chunk(REPLY)]
    bodies = [json.loads(e.removeprefix("data: ")) for e in events]
    assert len({b["id"] for b in bodies}) == 1
    assert {b["object"] for b in bodies} == {"chat.completion.chunk"}
    assert bodies[1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert bodies[2]["choices"] == []


def test_an_event_is_one_line() -> None:
    written = event({"text": "a\nb\r\n\u2028\u0085 🪨"})
    assert written.endswith("\n\n")
    assert written.count("\n") == 2
    assert json.loads(written.removeprefix("data: ")) == {"text": "a\nb\r\n\u2028\u0085 🪨"}


def test_errors_have_openais_shape() -> None:
    body = error_body(ServeError("TL-SERVE-MODEL", where="model", param="model", got="x", known="m"))
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == "TL-SERVE-MODEL"
    assert body["error"]["param"] == "model"
    assert "x" in body["error"]["message"]
    assert "m" in body["error"]["message"]
    assert error_body(DataError("TL-DATA-NEVER-SEEN", status=404))["error"]["type"] == "server_error"


def test_a_step_of_admission_names_its_status_itself() -> None:
    refusal = ServeError("TL-SERVE-FULL", status=429, waiting=1, seconds=2)
    assert status_of(refusal) == 429
    assert error_body(refusal)["error"]["type"] == "rate_limit_error"
    assert status_of(ServeError("TL-SERVE-BODY", most=1)) == 413


@pytest.mark.parametrize("code", sorted({*STATUS, "TL-SERVE-KEY", "TL-SERVE-FULL"}))
def test_every_code_has_words_in_both_languages(code: str) -> None:
    family = next(f for f in FAMILIES if code.split("-")[1].lower() == f)
    for language in ("en", "zh"):
        assert {"what", "do", "more"} <= catalogue(family, language)[code].keys()
