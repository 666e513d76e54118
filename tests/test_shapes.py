"""What a row means: one test a form of row, and the forms that are no dialogue."""

from __future__ import annotations

from typing import Any

import pytest

from tuneloop.data import shapes
from tuneloop.data.ledger import words
from tuneloop.data.shapes import BadRow, convert, recognise
from tuneloop.records import Message

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
    assert list(convert(row)[0]) == turns


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
    messages, _ = convert({"messages": [{"role": "user", "content": "q"}, turn]})
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert messages[1] == Message("assistant", "let me look", "hm", (call,))


@pytest.mark.parametrize("arguments", ['{"x": 1}', '"{\\"x\\": 1}"', {"x": 1}])
def test_arguments_become_objects_however_they_were_encoded(arguments: object) -> None:
    turn = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": arguments}}]}
    messages, _ = convert({"messages": [{"role": "user", "content": "q"}, turn]})
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
    messages, tools = convert({"conversations": turns, "tools": '[{"name": "f", "parameters": {}}]'})
    assert [m.role for m in messages] == ["user", "assistant", "tool", "assistant"]
    assert [c["function"]["name"] for c in messages[1].tool_calls] == ["f", "g"]
    assert tools == ({"type": "function", "function": {"name": "f", "parameters": {}}},)


@pytest.mark.parametrize("tools", ["[]", "", None, []])
def test_no_tools_is_no_tools(tools: object) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": tools}
    assert convert(row)[1] == ()


def test_system_column_beside_turns_is_kept() -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert convert({"system": "s", "conversations": turns})[0][0] == Message("system", "s")


def test_reasoning_content_of_a_message() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "hm"}]
    assert convert({"messages": turns})[0][1] == Message("assistant", "a", "hm")


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
        ({"chosen": "a", "rejected": "b"}, "other shape"),
        ({"instruction": "q", "output": None}, "missing value"),
        ({"instruction": "q", "output": 5}, "not text"),
        ({"instruction": "q", "output": float("nan")}, "NaN or infinity"),
        ({"question": "q", "answer": ["a", "b"]}, "not text"),
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
        (turns({"role": "assistant", "content": "a", "weight": 0}), "loss weight"),
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


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference"),
        ({"chosen_messages": [], "rejected_messages": []}, "preference"),
        ({"messages": [{"role": "user", "content": "q"}], "label": True}, "preference"),
        ({"prompt": "q", "completion": "a", "label": False}, "preference"),
        ({"text": "t", "label": 1}, "labelled"),
        ({"review": "t", "sentiment": "positive"}, "labelled"),
        ({"text": "t", "meta": {}}, "text"),
        ({"a": 1, "b": 2}, "unknown"),
        ({"question": "q", "human_answer": "a"}, "unknown"),
    ],
)
def test_refused_shapes_have_names(row: dict[str, Any], name: str) -> None:
    assert recognise([row]).name == name
    assert name in shapes.REFUSED


def test_mapping_overrules_looking() -> None:
    row = {"question": "q", "answer": "not this", "human_answer": "a", "why": "hm"}
    columns = {"user": "question", "assistant": "human_answer", "reasoning": "why"}
    assert list(convert(row, columns)[0]) == [Q, Message("assistant", "a", "hm")]


def test_share_is_of_the_majority() -> None:
    rows = [{"instruction": "q", "output": "a"}] * 3 + [{"x": 1}]
    assert recognise(rows).share == 0.75


def test_null_columns_do_not_hide_the_filled_ones() -> None:
    row = {"messages": None, "instruction": "q", "output": "a"}
    assert recognise([row]).name == "alpaca"
    assert list(convert(row)[0]) == [Q, A]
