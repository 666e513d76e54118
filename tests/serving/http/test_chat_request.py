"""What a chat request may say, what is refused and under which name, and what it becomes to an engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tuneloop.base.errors import ServeError
from tuneloop.base.language import speaking
from tuneloop.base.records import Sampling
from tuneloop.serving.engine import Query
from tuneloop.serving.http.body import parse
from tuneloop.serving.http.chat_request import ChatRequest
from tuneloop.serving.http.errors import error_body

USER = {"role": "user", "content": "Hi"}
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "Of x.", "parameters": {"type": "object", "properties": {"x": {}}}},
}


def request(**more: Any) -> ChatRequest:
    return parse(json.dumps({"model": "m", "messages": [USER], **more}).encode(), ChatRequest)


def refusal(body: Any) -> dict[str, Any]:
    with pytest.raises(ServeError) as caught:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode(), ChatRequest)
    return error_body(caught.value)["error"]


def test_a_plain_request() -> None:
    asked = request()
    assert asked.query() == Query("chat", "m", chat=[USER])
    assert (asked.stops, asked.stream, asked.with_usage) == ((), None, False)


def test_everything_that_is_supported() -> None:
    asked = request(
        max_tokens=7, temperature=0.5, top_p=0.9, top_k=40, min_p=0.05, frequency_penalty=0.5, presence_penalty=-1,
        repetition_penalty=1.1, logit_bias={"5": -100, "17": 3.5}, stop=["a", "b"], seed=3, stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False}, user="u", n=3, logprobs=True, top_logprobs=4,
        tools=[TOOL], tool_choice="required", parallel_tool_calls=False, chat_template_kwargs={"enable_thinking": True},
    )  # fmt: skip
    assert asked.with_usage
    assert asked.query() == Query(
        "chat", "m", chat=[USER], tools=(TOOL,), tool_choice="required", parallel_tool_calls=False, thinking=True,
        max_new_tokens=7, n=3, stop=("a", "b"), logprobs=4, user="u",
        sampling=Sampling(0.5, 0.9, 3, 40, 0.05, 0.5, -1, 1.1, ((5, -100), (17, 3.5))),
    )  # fmt: skip
    assert request(max_completion_tokens=9, max_tokens=7).query().max_new_tokens == 9
    assert request(stop="x").stops == ("x",)
    assert request(top_k=-1).sampling().top_k == 0
    assert request(logprobs=True).query().logprobs == 0
    assert request(logprobs=False).query().logprobs is None
    assert request(user="u", safety_identifier="s").query().user == "s"


def test_messages_become_what_a_template_takes() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "kim"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]
    assert request(messages=messages).chat() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ab", "name": "kim"},
        {"role": "assistant", "content": "", "tool_calls": [{**call, "function": {"name": "f", "arguments": {}}}],
         "reasoning_content": "hm"},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]  # fmt: skip


def test_arguments_that_are_no_json_stay_as_they_are() -> None:
    for arguments, given in (
        ("not json", "not json"),
        ('{"x": 1}', {"x": 1}),
        ({"x": 1}, {"x": 1}),
        ("", {}),
        (None, {}),
    ):
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        messages = [USER, {"role": "assistant", "tool_calls": [call]}]
        assert request(messages=messages).chat()[1]["tool_calls"][0]["function"]["arguments"] == given


def test_what_the_client_gives_back_of_an_answer_is_taken() -> None:
    """The message of an answer, as the official client dumps it, is a message of the next request."""
    from openai.types.chat import ChatCompletionMessage

    answer = {"role": "assistant", "content": None, "refusal": None, "reasoning_content": "hm",
              "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}  # fmt: skip
    dumped = ChatCompletionMessage.model_validate(answer).model_dump()
    assert request(messages=[USER, dumped]).chat()[1]["tool_calls"][0]["id"] == "c"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [USER, {"role": "user", "content": 5}]}, "messages.1.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages.0.content.0.text"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {}}]}]}, "messages.1.tool_calls.0.function.name"),
        ({"messages": [{**USER, "audio": {"id": "x"}}]}, "messages.0.audio"),
        ({"messages": [USER] * 2049}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "7"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"presence_penalty": "0"}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"abc": 1}}, "logit_bias.abc"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"-5": 1}}, "logit_bias.-5"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop.1"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 1001}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"extra": 1}}, "stream_options.extra"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"temprature": 1}, "temprature"),
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": ["m"]}, "model"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "chat_template_kwargs.add_generation_prompt"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools.0.type"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "no blanks"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools.0.function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "nothing"}}}]}, "tools.0.function.parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}}}, "response_format.json_schema.schema"),
    ],
)  # fmt: skip
def test_what_is_refused_names_its_place(more: dict[str, Any], param: str) -> None:
    error = refusal({"model": "m", "messages": [USER], **more})
    assert (error["code"], error["param"]) == ("TL-SERVE-REQUEST", param)
    assert error["type"] == "invalid_request_error"
    with speaking("zh"):
        assert error["message"] != refusal({"model": "m", "messages": [USER], **more})["message"]


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
    with speaking("zh"):
        assert words in refusal(body.encode())["message"]


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "null", '{"model": "m"}', '{"model": "m", "messages": [1]}', '"x"', "1"]
)
def test_bodies_that_are_no_request(body: str) -> None:
    assert refusal(body.encode())["code"] == "TL-SERVE-REQUEST"


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("functions", [{"name": "f"}]), ("function_call", {"name": "f"}), ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}), ("prediction", {"type": "content"}), ("web_search_options", {}),
        ("verbosity", "low"), ("reasoning_effort", "high"), ("moderation", {"model": "x"}),
    ],
)  # fmt: skip
def test_what_would_change_the_answer_is_refused(key: str, content: Any) -> None:
    error = refusal({"model": "m", "messages": [USER], key: content})
    assert (error["code"], error["param"]) == ("TL-SERVE-UNSUPPORTED", key)


def test_an_answer_cannot_be_json_and_call_tools() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
    error = refusal({"model": "m", "messages": [USER], "tools": [TOOL], "response_format": form})
    assert (error["code"], error["param"]) == ("TL-SERVE-UNSUPPORTED", "response_format")
    assert request(tools=[TOOL], response_format=form, tool_choice="none").query().schema == {}
    assert request(tools=[TOOL], response_format={"type": "text"}).query().schema is None


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("n", 1), ("n", None), ("tools", []), ("tools", None), ("response_format", {"type": "text"}), ("logprobs", False),
        ("frequency_penalty", 0), ("presence_penalty", 0.0), ("logit_bias", {}), ("logit_bias", None),
        ("tool_choice", "auto"), ("tool_choice", "none"), ("functions", []), ("function_call", "auto"),
        ("modalities", ["text"]), ("parallel_tool_calls", True), ("reasoning_effort", None), ("verbosity", None),
        ("store", True), ("service_tier", "flex"), ("metadata", {"a": "b"}), ("prompt_cache_key", "k"),
        ("prompt_cache_retention", "24h"), ("prompt_cache_options", {"ttl": "30m"}), ("safety_identifier", None),
        ("chat_template_kwargs", {}), ("stream_options", None), ("top_logprobs", None), ("stop", []), ("stop", None),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_taken(key: str, content: Any) -> None:
    assert request(**{key: content}).query() == request().query()


def test_tools_and_the_choice_among_them() -> None:
    named = {"type": "function", "function": {"name": "f"}}
    assert request(tools=[TOOL]).query().tools == (TOOL,)
    assert request(tools=[TOOL], tool_choice=named).query().tool_choice == "f"
    assert request(tools=[TOOL], tool_choice="none").query().tools == ()
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}  # type: ignore[dict-item]
    assert request(tools=[strict]).query().tools == (TOOL,), "the template is not shown it"


def test_formats_become_schemas() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "description": "d", "schema": schema}}
    assert request(response_format=form).query().schema == schema
    assert request(response_format={"type": "json_object"}).query().schema == {}


def test_schemas_are_bounded() -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(40):
        deep = {"items": deep}
    large = {"enum": ["x" * 70_000]}
    wide = {"allOf": [{}] * 5000}
    for schema in (deep, large, wide):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        error = refusal({"model": "m", "messages": [USER], "response_format": form})
        assert (error["code"], error["param"]) == ("TL-SERVE-REQUEST", "response_format.json_schema.schema")


def test_all_tools_together_are_bounded() -> None:
    tools = [
        {"type": "function", "function": {"name": f"f{k}", "parameters": {"allOf": [{}] * 500}}} for k in range(30)
    ]
    error = refusal({"model": "m", "messages": [USER], "tools": tools})
    assert (error["code"], error["param"]) == ("TL-SERVE-REQUEST", "tools")


def test_thinking() -> None:
    assert request().query().thinking is None
    assert request(reasoning_effort="none").query().thinking is False
    assert request(chat_template_kwargs={"enable_thinking": False}).query().thinking is False
    assert request(chat_template_kwargs={"enable_thinking": True}, reasoning_effort="none").query().thinking is True


def test_temperatures_too_cold_to_sample_are_greedy() -> None:
    assert request(temperature=1e-9).sampling_temperature == 0.0
    assert request(temperature=0).sampling_temperature == 0.0
    assert request(temperature=0.01).sampling_temperature == 0.01


def test_errors_of_an_engine_name_the_field_that_was_sent() -> None:
    room = ServeError("TL-SERVE-ROOM", param="max_tokens", tokens=1, left=1, wanted=2, context=2)
    for field in ("max_tokens", "max_completion_tokens"):
        assert error_body(room, request(**{field: 5}).places)["error"]["param"] == field
    assert error_body(ServeError("TL-SERVE-CONTEXT"), request().places)["error"]["param"] == "messages"
