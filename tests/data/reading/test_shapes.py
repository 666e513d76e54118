"""What a row's columns mean, and what kind of record its file is of."""

from __future__ import annotations

from typing import Any

import pytest

from tuneloop.data.reading import shapes
from tuneloop.data.reading.shapes import layout, mapped, recognise


@pytest.mark.parametrize(
    ("row", "name", "kind"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference", "preference"),
        ({"chosen_messages": [], "rejected_messages": []}, "preference", "preference"),
        ({"messages": [], "rejected_response": "b"}, "preference", "preference"),
        ({"messages": [{"role": "user", "content": "q"}], "label": True}, "messages", "chat"),
        ({"messages": [{"role": "user", "content": "q"}], "kto_tag": True}, "judged", "judged"),
        ({"prompt": "q", "completion": "a", "label": True}, "judged", "judged"),
        ({"prompt": "q", "completion": "a", "label": "True"}, "judged", "judged"),
        ({"prompt": "q", "completion": "a", "label": 1}, "prompt_completion", "chat"),
        ({"prompt": "q", "response": "a", "label": True}, "prompt_completion", "chat"),
        ({"instruction": "q", "output": "a", "label": False}, "alpaca", "chat"),
        ({"messages": [{"role": "user", "content": "q"}], "label": "maths"}, "messages", "chat"),
        ({"prompt": "q", "completion": "a", "kto_tag": False}, "judged", "judged"),
        ({"text": "t", "label": 1}, "labelled", "label"),
        ({"Review": "t", "Sentiment": "positive"}, "labelled", "label"),
        ({"文本": "t", "标签": "好"}, "labelled", "label"),
        ({"text": "t", "meta": {}}, "text", "text"),
        ({"instruction": "q", "output": "a", "text": "both"}, "alpaca", "chat"),
        ({"a": 1, "b": 2}, "unknown", None),
        ({"question": "q", "human_answer": "a"}, "unknown", None),
        ({"label": 1, "id": 2}, "unknown", None),
    ],
)
def test_shapes_have_names_and_kinds(row: dict[str, Any], name: str, kind: str | None) -> None:
    shape = recognise([row])
    assert (shape.name, shape.kind) == (name, kind)


def test_share_is_of_the_majority() -> None:
    rows = [{"instruction": "q", "output": "a"}] * 3 + [{"x": 1}]
    assert recognise(rows).share == 0.75


def test_null_columns_do_not_hide_the_filled_ones() -> None:
    assert recognise([{"messages": None, "instruction": "q", "output": "a"}]).name == "alpaca"


def test_a_label_that_is_not_yes_or_no_everywhere_is_no_verdict() -> None:
    rows = [{"prompt": "q", "completion": "a", "label": value} for value in (False, True, "maybe")]
    assert recognise(rows).kind == "chat"
    assert recognise(rows[:2]).kind == "judged"
    assert recognise([{**rows[0], "label": None}, rows[1]]).kind == "judged"


@pytest.mark.parametrize("values", [
    (0, 1), ("0", "1"), (0.0, 1.0), (0, 0), (None, 1), (True, False), ("True", "False"), (None, True), ("good", "bad"),
])  # fmt: skip
def test_a_verdict_beside_answers_is_one_only_where_the_recipe_says_so(
    values: tuple[object, ...],
) -> None:
    rows = [{"question": "q", "answer": "a", "label": value} for value in values]
    assert recognise(rows).kind == "chat"
    assert shapes.doubtful_verdict(rows) == "label"
    assert recognise(rows, "judged").kind == "judged"
    assert recognise([{**row, "kto_tag": row["label"]} for row in rows]).kind == "judged"


def test_labels_that_never_repeat_are_no_labels() -> None:
    rows = [{"text": "t", "label": f"remark {n}"} for n in range(20)]
    assert recognise(rows).kind is None
    assert recognise(rows, "label").kind == "label"
    assert recognise([{"text": "t", "label": f"{n % 5}"} for n in range(20)]).kind == "label"


def test_the_recipe_says_what_rows_are() -> None:
    both = {"text": "t", "label": 1}
    assert recognise([both], "text").roles == {"text": "text"}
    assert recognise([both], "chat").kind is None
    judged = {"prompt": "q", "completion": "a", "label": True}
    assert recognise([judged], "chat").kind == "chat"
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert recognise([pair], "chat").kind == "chat"


@pytest.mark.parametrize(
    ("roles", "kind"),
    [
        ("messages", "chat"), ("user assistant", "chat"), ("prompt assistant", "chat"), ("user", None),
        ("text", "text"), ("text label", "label"), ("messages label", "judged"), ("user assistant label", "judged"),
        ("chosen rejected", "preference"), ("prompt chosen rejected", "preference"), ("messages rejected", "preference"),
        ("role content", "chat"), ("role content conversation", "chat"), ("messages role content", "chat"),
        ("text text_pair label", "label"), ("role", None), ("prompt chosen", "chat"), ("label", None), ("rejected", None),
    ],
)  # fmt: skip
def test_kind_of_a_mapping(roles: str, kind: str | None) -> None:
    assert mapped(dict.fromkeys(roles.split(), "column")) == kind


def test_layout_is_of_the_columns_alone() -> None:
    assert layout(("question", "answer", "context")).roles == {
        "user": "question", "assistant": "answer", "input": "context",
    }  # fmt: skip
    assert layout(("messages", "tools", "input")).roles == {"messages": "messages", "tools": "tools"}


def test_every_role_can_be_named() -> None:
    assert {"messages", "user", "assistant", "input", "system", "history", "reasoning", "tools", "text", "label",
            "chosen", "rejected", "prompt", "text_pair", "role", "content", "conversation", "order"} == set(shapes.ROLE_NAMES)  # fmt: skip
