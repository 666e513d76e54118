"""One row -> one record: a test for each form of row, and the forms that are none."""

from __future__ import annotations

from typing import Any

import pytest

from tuneloop.base.records import Kind, Message
from tuneloop.data.ledger import words
from tuneloop.data.reading.keys import BadRow
from tuneloop.data.reading.rows import convert
from tuneloop.data.reading.shapes import recognise

Q, A = Message("user", "q"), Message("assistant", "a")

ROWS: list[tuple[str, dict[str, Any], list[Message]]] = [
    ("alpaca", {"instruction": "q", "output": "a"}, [Q, A]),
    ("alpaca", {"instruction": "q", "input": "more", "output": "a"}, [Message("user", "q\nmore"), A]),
    ("alpaca", {"instruction": "q", "input": "", "output": "a", "system": "s"}, [Message("system", "s"), Q, A]),
    (
        "alpaca",
        {"instruction": "q", "output": "a", "history": [["q1", "a1"]]},
        [Message("user", "q1"), Message("assistant", "a1"), Q, A],
    ),
    ("query_response", {"query": "q", "response": "a", "history": []}, [Q, A]),
    (
        "query_response",
        {"query": "q", "response": "a", "history": [{"query": "q1", "response": "a1"}], "system": "s"},
        [Message("system", "s"), Message("user", "q1"), Message("assistant", "a1"), Q, A],
    ),
    ("prompt_completion", {"prompt": "q", "completion": "a"}, [Q, A]),
    (
        "prompt_completion",
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        [Q, A],
    ),
    ("question_answer", {"question": "q", "answer": "a"}, [Q, A]),
    ("question_answer", {"question": "q", "answer": ["a"]}, [Q, A]),
    ("question_answer", {"问题": "q", "回答": "a"}, [Q, A]),
    ("input_output", {"input": "q", "output": "a"}, [Q, A]),
    ("user_assistant", {"user": "q", "assistant": "a"}, [Q, A]),
    ("alpaca", {"instruction": "", "input": "q", "output": "a"}, [Q, A]),
    (
        "question_cot_response",
        {"Question": "q", "Complex_CoT": "why", "Response": "a", "question": "other", "answer": "other"},
        [Q, Message("assistant", "a", "why")],
    ),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [Q, A]),
    ("messages", {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, [Q, A]),
    ("messages", {"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'}, [Q, A]),
    (
        "client_counselor",
        {"dialog": [{"role": "client", "content": "q"}, {"role": "counselor", "content": "a"}]},
        [Q, A],
    ),
    ("human_assistant_turns", {"conversation": [{"human": "q", "assistant": "a"}]}, [Q, A]),
    (
        "input_output_turns",
        {
            "conversation": [
                {"system": "s", "input": "q", "output": "a"},
                {"system": "s", "input": "q", "output": "a"},
            ]
        },
        [Message("system", "s"), Q, A, Q, A],
    ),
]


@pytest.mark.parametrize(("name", "row", "turns"), ROWS)
def test_recognised_is_what_is_converted(name: str, row: dict[str, Any], turns: list[Message]) -> None:
    assert recognise([row]).name == name
    assert list(convert(row).messages) == turns


def test_typed_parts_hold_text_thought_and_calls() -> None:
    turn = {
        "role": "assistant",
        "content": [
            {"type": "reasoning", "value": "hm"},
            {"type": "text", "text": "let me "},
            {"type": "text", "value": "look"},
            {"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        ],
    }
    messages = convert({"messages": [{"role": "user", "content": "q"}, turn]}).messages
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert messages[1] == Message("assistant", "let me look", "hm", (call,))


@pytest.mark.parametrize("arguments", ['{"x": 1}', '"{\\"x\\": 1}"', {"x": 1}])
def test_arguments_become_objects_however_they_were_encoded(arguments: object) -> None:
    turn = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": arguments}}]}
    messages = convert({"messages": [{"role": "user", "content": "q"}, turn]}).messages
    assert messages[1].content == ""
    assert messages[1].tool_calls[0] == {
        "id": "c",
        "type": "function",
        "function": {"name": "f", "arguments": {"x": 1}},
    }


def test_sharegpt_calls_and_results() -> None:
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]'},
        {"from": "observation", "value": "42"},
        {"from": "gpt", "value": "a"},
    ]
    record = convert({"conversations": turns, "tools": '[{"name": "f", "parameters": {}}]'})
    messages, tools = record.messages, record.tools
    assert [m.role for m in messages] == ["user", "assistant", "tool", "assistant"]
    assert [c["function"]["name"] for c in messages[1].tool_calls] == ["f", "g"]
    assert tools == ({"type": "function", "function": {"name": "f", "parameters": {}}},)


@pytest.mark.parametrize("tools", ["[]", "", None, []])
def test_no_tools_is_no_tools(tools: object) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": tools}
    assert convert(row).tools == ()


def test_system_column_beside_turns_is_kept() -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert convert({"system": "s", "conversations": turns}).messages[0] == Message("system", "s")


def test_reasoning_content_of_a_message() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "hm"}]
    assert convert({"messages": turns}).messages[1] == Message("assistant", "a", "hm")


def turns(*last: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "q"}, *last]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (None, "empty row"),
        ({}, "empty row"),
        ({"instruction": " ", "output": ""}, "empty row"),
        ("text", "not an object"),
        (["a"], "not an object"),
        ({"instruction": "q"}, "other shape"),
        ({"chosen": "a", "rejected": "b"}, "missing value"),
        ({"instruction": "q", "output": None}, "missing value"),
        ({"instruction": "q", "output": {"a": 5}}, "not text"),
        ({"instruction": "q", "output": float("nan")}, "NaN or infinity"),
        ({"question": "q", "answer": ["a", ["b"]]}, "not text"),
        ({"question": ["a", "b"], "answer": "a"}, "not text"),
        ({"messages": [], "id": 3}, "no turns"),
        ({"messages": "{'role': 'user'}"}, "no turns"),
        ({"messages": 3}, "no turns"),
        (turns("text"), "unknown turn"),
        (turns({"speaker": "x"}), "unknown turn"),
        (turns({"role": "narrator", "content": "x"}), "unknown role"),
        (turns({"role": None, "content": "x"}), "unknown role"),
        (turns({"role": "assistant", "content": {"a": 1}}), "not text"),
        (turns({"role": "assistant", "content": [{"type": "image_url", "image_url": "x"}]}), "part not text"),
        (turns({"role": "assistant", "tool_calls": {"function": {"name": "f", "arguments": "{"}}}), "broken tool call"),
        (turns({"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}), "broken tool call"),
        (turns({"role": "assistant", "content": "a", "weight": 0.5}), "loss weight"),
        (turns({"role": "assistant", "content": "a", "weight": "half"}), "loss weight"),
        (turns({"role": "user", "content": [{"type": "reasoning", "value": "hm"}]}), "part not text"),
        ({**turns({"role": "assistant", "content": "a"}), "tools": "[{"}, "broken tools"),
        ({**turns({"role": "assistant", "content": "a"}), "tools": [3]}, "broken tools"),
    ],
)  # fmt: skip
def test_what_is_no_dialogue_says_why(row: object, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        convert(row)
    assert caught.value.reason == reason
    assert reason in words()


def test_mapping_overrules_looking() -> None:
    row = {"question": "q", "answer": "not this", "human_answer": "a", "why": "hm"}
    columns = {"user": "question", "assistant": "human_answer", "reasoning": "why"}
    assert list(convert(row, columns=columns).messages) == [Q, Message("assistant", "a", "hm")]


@pytest.mark.parametrize(("weight", "trained"), [(0, False), (0.0, False), (1, True), (1.0, True), (None, True)])
@pytest.mark.parametrize("name", ["weight", "loss_weight"])
def test_weights_say_what_is_learned(name: str, weight: object, trained: bool) -> None:
    turn = {"role": "assistant", "content": "a", name: weight}
    assert convert(turns({"role": "user", "content": "q", name: 0}, turn)).messages[-1].trained is trained


def test_weights_of_calls_count_too() -> None:
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {}}', "weight": 0}
    row = {"conversations": [{"from": "human", "value": "q"}, call]}
    assert convert(row).messages[1].trained is False


B = Message("assistant", "b")
SAID = {"role": "user", "content": "q"}
GOOD, BAD = {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"question": "q", "chosen": "a", "rejected": "b"},
        {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
        {"prompt": [SAID], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "q", "chosen": [SAID, GOOD], "rejected": [SAID, BAD], "messages": [SAID, GOOD]},
        {"chosen_messages": [SAID, GOOD], "rejected_messages": [SAID, BAD]},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
         "rejected": {"from": "gpt", "value": "b"}},
        {"messages": [SAID, GOOD], "rejected_response": "b"},
        {"query": "q", "response": "a", "rejected_response": "b"},
    ],
)  # fmt: skip
def test_preferences_however_they_are_written(row: dict[str, Any]) -> None:
    record = convert(row, "preference")
    assert (record.kind, list(record.messages), list(record.rejected)) == ("preference", [Q, A], [B])
    assert list(record.prompt) == [Q]
    assert list(convert(row, "chat").messages) == [Q, A]
    assert convert(row, "chat").rejected == ()


def test_preference_keeps_what_is_before_the_question() -> None:
    row = {"system": "s", "history": [["q1", "a1"]], "prompt": "q", "input": "more", "chosen": "a", "rejected": "b"}
    said = [Message("system", "s"), Message("user", "q1"), Message("assistant", "a1"), Message("user", "q\nmore")]
    assert list(convert(row, "preference").messages) == [*said, A]


@pytest.mark.parametrize(
    ("row", "kind", "reason"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "preference", "equal answers"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "preference", "missing value"),
        ({"prompt": "q", "chosen": "a"}, "preference", "other shape"),
        ({"prompt": "q", "chosen": ["a"], "rejected": ["b"]}, "preference", "unknown turn"),
        ({"chosen": [SAID, GOOD], "rejected": [{"role": "user", "content": "p"}, BAD]}, "preference",
         "answers to different questions"),
        ({"text": "", "label": 1}, "label", "no text"),
        ({"text": "t", "label": " "}, "label", "missing value"),
        ({"text": "t", "label": None}, "label", "missing value"),
        ({"text": "t", "label": [1]}, "label", "no single label"),
        ({"text": "t", "label": float("nan")}, "label", "NaN or infinity"),
        ({"text": "t", "label": "\ud800"}, "label", "invalid Unicode"),
        ({"text": ["t"] * 2, "label": 1}, "label", "not text"),
        ({"text": "  "}, "text", "empty row"),
        ({"text": "  ", "id": 1}, "text", "no text"),
        ({"text": "\udfff"}, "text", "invalid Unicode"),
        ({"id": "t"}, "text", "other shape"),
        ({"prompt": "q", "completion": "a", "label": None}, "judged", "missing value"),
        ({"prompt": "q", "completion": "a", "label": "maths"}, "judged", "no verdict"),
        ({"prompt": "q", "completion": "a"}, "judged", "other shape"),
    ],
)  # fmt: skip
def test_what_is_no_record_of_its_kind(row: dict[str, Any], kind: Kind, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        convert(row, kind)
    assert caught.value.reason == reason
    assert reason in words()


def test_texts_and_labels() -> None:
    assert convert({"text": "t"}, "text").messages == (Message("assistant", "t"),)
    for value in ("    0", 0, 0.0, "0"):
        record = convert({"text": "t", "label": value}, "label")
        assert (record.messages, record.label) == ((Message("user", "t"),), "0")
    assert convert({"text": "t", "label": True}, "label").label == "true"
    assert convert({"text": "t", "label": 2.5}, "label").label == "2.5"


@pytest.mark.parametrize(("value", "label"), [(True, "good"), (0, "bad"), ("False", "bad"), ("1", "good")])
def test_verdicts(value: object, label: str) -> None:
    record = convert({"messages": [SAID, GOOD], "label": value}, "judged")
    assert (record.kind, record.label, list(record.messages)) == ("judged", label, [Q, A])


def test_place_is_kept() -> None:
    record = convert({"question": "q", "answer": "a"}, "chat", None, "f.csv", 7)
    assert (record.file, record.line) == ("f.csv", 7)
