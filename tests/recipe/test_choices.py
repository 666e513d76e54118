from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import pytest

import tuneloop
from tuneloop.base.records import Kind
from tuneloop.methods.table import METHODS
from tuneloop.recipe.checks import contradictions
from tuneloop.recipe.choices import (
    LOSS_CHOICES,
    METHOD_CHOICES,
    METHOD_SECTIONS,
    TASK_CHOICES,
    TASK_SECTIONS,
    USUAL,
    LossName,
    MethodName,
    TaskName,
    usual_rate,
)
from tuneloop.recipe.peers.values import method, preference, task
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import TrainPart
from tuneloop.tasks.prefer import PAIRED
from tuneloop.tasks.table import TASKS


def test_recipe_rows_and_code_have_the_same_names() -> None:
    assert tuple(METHOD_CHOICES) == get_args(MethodName)
    assert METHODS.keys() == METHOD_CHOICES.keys()
    assert ("auto", *TASK_CHOICES) == get_args(TaskName)
    assert TASKS.keys() == TASK_CHOICES.keys()
    assert ("auto", *LOSS_CHOICES) == get_args(LossName)
    assert LOSS_CHOICES.keys() == {*PAIRED, "kto"}


def test_every_kind_of_row_has_a_usual_task_that_takes_it() -> None:
    assert set(USUAL) == set(get_args(Kind))
    for kind, name in USUAL.items():
        assert kind in TASKS[name].kinds
    for name, row in TASK_CHOICES.items():
        assert row.reads is None or TASKS[name].kinds == {row.reads}


def test_every_section_is_one_of_train() -> None:
    own = {key for key, field in TrainPart.model_fields.items() if hasattr(field.annotation, "model_fields")}
    assert {*METHOD_SECTIONS, *TASK_SECTIONS} == own
    for row in METHOD_CHOICES.values():
        assert not row.quantized or METHOD_CHOICES[row.quantized].quantize
        for key in row.without:
            section, name = key.split(".")
            assert section in row.sections
            assert name in type(getattr(TrainPart(), section)).model_fields


# A setting of each section that is not its default.
SETTINGS = {"lora": {"rank": 2}, "qlora": {"double": False}, "freeze": {"layers": 3}, "virtual": {"tokens": 3},
            "classify": {"weights": "balanced"}, "prefer": {"beta": 0.5}, "sft": {"loss": "focal"}}  # fmt: skip


@pytest.mark.parametrize("section", METHOD_SECTIONS)
@pytest.mark.parametrize("name", METHOD_CHOICES)
def test_a_method_takes_its_own_sections_alone(name: str, section: str) -> None:
    raw = {"train": {"method": name, "learning_rate": 1e-4, section: SETTINGS[section]}}
    faults = contradictions(raw, make_recipe({"train": {"method": name}})[0].model_copy(
        update={"train": TrainPart.model_validate(raw["train"])}))  # fmt: skip
    assert [error.where for error in faults] == ([] if section in METHODS[name].sections else [f"train.{section}"])


@pytest.mark.parametrize("section", TASK_SECTIONS)
@pytest.mark.parametrize("name", get_args(TaskName))
def test_a_task_takes_its_own_sections_alone(name: str, section: str) -> None:
    raw = {"train": {"task": name, section: SETTINGS[section]}}
    faults = contradictions(raw, make_recipe({})[0].model_copy(
        update={"train": TrainPart.model_validate(raw["train"])}))  # fmt: skip
    fits = name == "auto" or section in TASK_CHOICES[name].sections
    assert [error.where for error in faults] == ([] if fits else [f"train.{section}"])


def test_names_of_other_tools_are_of_one_row_each() -> None:
    for rows in (METHOD_CHOICES, TASK_CHOICES, LOSS_CHOICES):
        names = [name for key, row in rows.items() for name in (key, *row.aliases)]
        assert len(names) == len(set(names))
    assert [method(name) for name in METHOD_CHOICES] == list(METHOD_CHOICES)
    assert [preference(name) for name in LOSS_CHOICES] == list(LOSS_CHOICES)
    assert [task(name) for name in TASK_CHOICES] == [(name, "") for name in TASK_CHOICES]
    assert [task(name) for name in ("kto", "orpo", "dpo")] == [("prefer", "kto"), ("prefer", "orpo"), ("prefer", "")]


def test_usual_rates() -> None:
    rates = {
        ("lora", "chat"): 2e-4, ("lora", "prefer"): 5e-6, ("lora", "classify"): 2e-4,
        ("qlora", "chat"): 2e-4, ("qlora", "prefer"): 5e-6, ("qlora", "classify"): 2e-4,
        ("full", "chat"): 3e-5, ("full", "prefer"): 1e-6, ("full", "classify"): 3e-5,
        ("freeze", "chat"): 3e-5, ("freeze", "prefer"): 1e-6, ("freeze", "classify"): 3e-5,
        ("ptuning_v2", "chat"): 5e-3, ("ptuning_v2", "prefer"): 5e-3, ("ptuning_v2", "classify"): 5e-3,
        ("prompt_tuning", "chat"): 3e-2, ("prompt_tuning", "prefer"): 3e-2, ("prompt_tuning", "classify"): 3e-2,
    }  # fmt: skip
    assert {pair: usual_rate(*pair) for pair in rates} == rates
    assert usual_rate("freeze", "reward", 0) == 1e-3
    assert usual_rate("freeze", "classify_prompt", 0) == usual_rate("freeze", "chat", 0) == 3e-5, "no new head"


PACKAGE = Path(tuneloop.__file__).parent


def _compared(tree: ast.AST) -> list[tuple[int, str]]:
    """Names of methods and tasks that something called method or task is compared with: (line, name)."""
    names = {*METHOD_CHOICES, *TASK_CHOICES}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        subjects = {one.attr if isinstance(one, ast.Attribute) else getattr(one, "id", "") for one in sides}
        texts = {one.value for side in sides for one in ast.walk(side) if isinstance(one, ast.Constant)}
        if subjects & {"method", "task"}:
            found += [(node.lineno, str(text)) for text in texts if text in names]
    return found


def test_nothing_asks_for_a_method_or_a_task_by_its_name() -> None:
    """`data[].task` and its likes name a kind of row, which is another thing: `wish.task`, `file.task`."""
    assert _compared(ast.parse('if train.method in {"lora"}: pass')) == [(1, "lora")]
    kinds = {"data/reading/sniff.py", "data/reading/places.py", "data/reading/formats.py"}
    forks = {
        file.relative_to(PACKAGE).as_posix(): lines
        for file in sorted(PACKAGE.rglob("*.py"))
        if (lines := _compared(ast.parse(file.read_text(encoding="utf-8"))))
    }
    assert forks.keys() <= kinds, forks
