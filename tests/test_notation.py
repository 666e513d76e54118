"""The YAML of recipes: numbers as people write them, no key twice, what is written is read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.errors import RecipeError
from tuneloop.notation import dumps, loads


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
