"""The YAML of recipes: numbers as people write them, no key twice, what is written is read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.base.errors import RecipeError
from tuneloop.recipe.yaml import dumps, loads, slips


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-4", 2e-4), ("1E5", 1e5), ("-3e+2", -300.0), ("1.5e-4", 1.5e-4), ("1.e3", 1000.0), ("1_0e1", 100.0),
     ("3", 3), ("0.1", 0.1), ("e5", "e5"), ("2e", "2e"), ("'2e-4'", "2e-4"), ("1e-4f", "1e-4f")],
)  # fmt: skip
def test_numbers(text: str, value: Any) -> None:
    read = loads(text, "x")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "text",
    ["a: [", "a: b: c", "\ta: 1", "a: 1\na: 2", "t:\n  x: 1\n  x: 1", "d: 2026-02-31",
     "!!python/object:os.system {}", "[" * 9999],
    ids=["open", "colons", "tab", "twice", "twice-inside", "date", "object", "deep"],
)  # fmt: skip
def test_what_is_no_yaml(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        loads(text, "my.yaml")
    assert caught.value.code == "TL-RECIPE-YAML"
    assert "my.yaml" in str(caught.value)


def test_a_key_twice_names_key_and_line() -> None:
    with pytest.raises(RecipeError, match=r"epochs is written twice.*line 3"):
        loads("train:\n  epochs: 1\n  epochs: 2\n", "x")


def test_merged_keys_may_be_overridden() -> None:
    assert loads("a: &a {x: 1, y: 1}\nb: {<<: *a, x: 2}", "x")["b"] == {"x": 2, "y": 1}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_what_is_written_is_read(value: Any) -> None:
    assert loads(dumps(value), "x") == value


@given(st.from_regex(r"[0-9_.eE+-]{1,12}", fullmatch=True))
def test_a_text_that_looks_like_a_number_stays_a_text(text: str) -> None:
    assert loads(dumps([text]), "x") == [text]


def told(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        loads(text, "my.yaml")
    return str(caught.value.facts["error"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: b: c", "a second `: ` in one line, or a line indented too far (line 1, column 5)"),
        ("a: 1\nb\nc: 2", "a line without `: ` (line 2, column 1)"),
        ("a: 1\n\tb: 2", "a tab, where only spaces may stand (line 2, column 1)"),
        ("a: 1\nb: @c", "a value that begins with @ needs quotes (line 2, column 4)"),
        ("a: 'b\nc: 1", "a quote that is not closed (line 1, column 4)"),
        ("a: [b, c", "a [ that is not closed, or a comma that is missing in it (line 1, column 9)"),
        ("a: {b: c", "a { that is not closed, or a comma that is missing in it (line 1, column 9)"),
        ("a: *b", "a value that begins with * needs quotes (line 1, column 4)"),
        ("a: !b c", "a value that begins with ! needs quotes (line 1, column 4)"),
        ('a: "\\d"', "a \\ in double quotes; use single quotes (line 1, column 4)"),
        ("a:\n  b: 1\n c: 2", "a line that is indented otherwise than the ones above it (line 3, column 2)"),
        ("a: 1\n---\nb: 2", "several documents in one file (---); a recipe is one (line 2, column 1)"),
        ("a: - b", "a `- ` in the middle of a line (line 1, column 4)"),
        ("? [a]\n: b", "a key that is a list or a section (line 1, column 3)"),
        ("a: \x07", "a control character (code 7) at character 4"),
        ("d: 2026-02-31", "a value that looks like a date or a number and is none; put it in quotes"),
        ("[" * 9999, "sections within sections without end"),
    ],
    ids=range(17),
)
def test_what_is_wrong_is_said_in_our_words(text: str, words: str) -> None:
    assert told(text) == words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("name：x", [("my.yaml", "`：`")]),
        ("a: 1\ntrain:\n  轮数： 3", [("my.yaml:3", "`：`")]),
        ("a: 1\n- path： b", [("my.yaml:2", "`：`")]),
        ("a: 1\nname: “x”", [("my.yaml:2", "`“`")]),
        ("a: 1\ndata: [a.jsonl，b.jsonl]", [("my.yaml:2", "`，`")]),
        ("a: 1\ndata: 【a.jsonl】", [("my.yaml:2", "`【`")]),
        ("a: 1\n\tb: 2", [("my.yaml:2", "a tab")]),
        ("a: 1\n\u3000b: 2", [("my.yaml:2", "a wide space (U+3000)")]),
        ("a: 1\n  \xa0b: 2", [("my.yaml:2", "a wide space (U+00A0)")]),
        ("# 注意：这里\nsystem: 你好：请回答，谢谢\nshow: ['你好，你是谁', \"a，b\"]", []),
        ("system: |\n  第一步：想\n  “好”\nname: x", []),
    ],
)  # fmt: skip
def test_characters_of_another_keyboard_are_named(text: str, found: list[tuple[str, str]]) -> None:
    assert [(e.where, e.facts["char"]) for e in slips(text, "my.yaml")] == found


def test_a_slip_is_told_beside_what_it_breaks() -> None:
    with pytest.raises(RecipeError) as caught:
        loads("name: x\ntrain:\n  lr: 1\n  epochs：3\n  seed: 1\n", "my.yaml")
    [slip] = caught.value.causes
    assert (slip.code, slip.where) == ("TL-RECIPE-CHARACTER", "my.yaml:4")
    assert "`：` stands here, where YAML wants a half-width : and a space." in str(caught.value)
