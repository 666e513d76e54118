"""Axolotl's names for what is in a turn are applied; its choices of trained tokens are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tuneloop.base.errors import RecipeError
from tuneloop.base.records import Record
from tuneloop.data.reading import formats
from tuneloop.recipe.recipe import make_recipe, read_recipe

CASES = Path(__file__).parents[1] / "cases" / "22-axolotl-turn-keys"


def made(**entry: Any) -> tuple[Any, list[str]]:
    file = {"path": "chat.jsonl", "type": "chat_template", **entry}
    recipe, notes = make_recipe({"base_model": "smollm2", "adapter": "lora", "datasets": [file]})
    return recipe.data[0], notes


def test_the_case() -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(CASES / "roles.yaml")
    assert {(c.code, c.where.rpartition(".")[2]) for c in caught.value.causes} == {
        ("TL-RECIPE-UNSUPPORTED", "roles_to_train"), ("TL-RECIPE-UNSUPPORTED", "train_on_eos"),
    }  # fmt: skip
    said = {}
    for name in ("thinking", "props"):
        recipe, _ = read_recipe(CASES / f"{name}.yaml")
        said[name] = [i for i in formats.read(recipe.data[0]) if isinstance(i, Record)]
    assert [r.messages[-1].reasoning[:10] for r in said["thinking"]] == ["Sechs mal ", "La moitié "]
    assert [[m.role for m in r.messages] for r in said["props"]] == [["user", "assistant"]] * 2
    assert said["props"][0].messages[0].content == "Where is my order?"


@pytest.mark.parametrize("entry", [
    {"roles_to_train": ["assistant"]}, {"roles_to_train": ["gpt"]}, {"train_on_eos": "turn"}, {"roles_to_train": None},
    {"message_property_mappings": {"role": "from", "content": "value"}}, {"field_thinking": "reasoning_content"},
    {"roles": {"user": ["human", "user"], "assistant": ["gpt", "assistant"]}}, {"message_field_training": "train"},
    {"message_field_training_detail": None}, {"field_messages": "messages"}, {"message_property_mappings": {}},
])  # fmt: skip
def test_the_usual_values_say_nothing(entry: dict[str, Any]) -> None:
    file, notes = made(**entry)
    assert (file.columns, file.speakers) == ({}, {})
    (key,) = entry
    assert key == "field_messages" or not entry[key] or any(key in n for n in notes if n.startswith("not read"))


@pytest.mark.parametrize("entry", [
    {"roles_to_train": ["user", "assistant"]}, {"roles_to_train": []}, {"roles_to_train": "all"},
    {"train_on_eos": "none"}, {"train_on_eos": "last"}, {"train_on_eos": "all"}, {"train_on_eos": False},
    {"message_field_training": "keep"}, {"message_field_training_detail": "train_detail"},
    {"message_property_mappings": {"channel": "lane"}}, {"message_property_mappings": ["role"]},
    {"roles": {"narrator": ["x"]}}, {"roles": "user"},
])  # fmt: skip
def test_another_choice_of_what_is_trained_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        made(**entry)
    (problem,) = caught.value.causes
    assert problem.code == "TL-RECIPE-UNSUPPORTED"
    assert next(iter(entry)) in problem.where


def test_other_names_become_columns_and_speakers() -> None:
    file, notes = made(field_messages="log", message_field_role="who", message_field_content="said",
                       field_thinking="why", roles={"user": "shopper", "assistant": ["clerk", "gpt"]})  # fmt: skip
    assert file.columns == {"messages": "log", "role": "who", "content": "said", "reasoning": "why"}
    assert file.speakers == {"shopper": "user", "clerk": "assistant"}
    assert sum("data[].columns" in note for note in notes) == 3
    assert made(field_thinking="why")[0].columns == {"messages": "messages", "reasoning": "why"}
