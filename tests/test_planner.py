from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TALK
from tuneloop import language
from tuneloop.data.tokens import Sample, tokenize
from tuneloop.errors import MachineError
from tuneloop.model.load import load_tokenizer
from tuneloop.plan import planner
from tuneloop.plan.budget import memory_gb, shape
from tuneloop.plan.hardware import Hardware, look
from tuneloop.plan.planner import Plan, make
from tuneloop.recipe import make_recipe
from tuneloop.records import Message, Record
from tuneloop.sections import Recipe


@pytest.fixture(scope="module")
def samples(tiny_model: Path) -> list[Sample]:
    records = [Record((Message("user", f"{q} {n}"), Message("assistant", a))) for n in range(5) for q, a in TALK]
    return tokenize(load_tokenizer(tiny_model), records)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Hardware:
    """This machine, measured once: a rate that differs from one plan to the next compares badly."""
    import torch

    seen = look(torch.float32)
    monkeypatch.setattr(planner, "look", lambda dtype: seen)
    return seen


def recipe_of(folder: Path, **train: Any) -> Recipe:
    return make_recipe({"model": str(folder), "train": {"epochs": 2, "batch_size": 8, "token_budget": 128, **train},
                        "prepare": {"max_length": 128}})[0]  # fmt: skip


def plan(folder: Path, samples: list[Sample], **train: Any) -> Plan:
    return make(recipe_of(folder, **train), folder, samples)


def test_a_plan_says_what_will_be(tiny_model: Path, samples: list[Sample], machine: Hardware) -> None:
    made = plan(tiny_model, samples)
    assert made.data == {
        "dialogues": 40, "tokens": sum(len(s.ids) for s in samples), "label_tokens": sum(s.labels for s in samples),
        "steps": 10,
    }  # fmt: skip
    assert made.model["name"] == str(tiny_model)
    assert made.model["dtype"] == "float32"
    assert 0 < made.model["trainable"] < made.model["parameters"]
    assert made.machine == machine
    assert made.seconds >= 0
    assert {("steps", "10"), ("method", "lora")} <= {(c.what, c.value) for c in made.choices}
    assert all(c.what and c.value and c.why for c in made.choices)
    back = json.loads(json.dumps(made.as_dict()))
    assert set(back) == {"machine", "model", "data", "choices", "seconds", "memory_gb"}


def test_a_plan_speaks_chinese(tiny_model: Path, samples: list[Sample], machine: Hardware) -> None:
    language.use("zh")
    assert all(
        any("\u4e00" <= c <= "\u9fff" for c in choice.what + choice.why) for choice in plan(tiny_model, samples).choices
    )


def test_time_grows_with_the_work(
    tiny_model: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, machine: Hardware
) -> None:
    slow = replace(machine, gflops=0.01)
    monkeypatch.setattr(planner, "look", lambda dtype: slow)
    two, four = plan(tiny_model, samples), plan(tiny_model, samples, epochs=4)
    assert four.seconds == pytest.approx(2 * two.seconds, rel=0.01)
    assert plan(tiny_model, samples, max_steps=1).seconds == pytest.approx(two.seconds / 10, rel=0.01)
    assert plan(tiny_model, samples, method="full").seconds > two.seconds
    monkeypatch.setattr(planner, "look", lambda dtype: replace(slow, gflops=0.02))
    assert plan(tiny_model, samples).seconds == pytest.approx(two.seconds / 2, rel=0.01)


def test_memory_is_that_of_the_fullest_forward_pass(tiny_model: Path, samples: list[Sample], machine: Hardware) -> None:
    made = plan(tiny_model, samples, packing=False)
    longest = max(len(s.ids) for s in samples)
    train = recipe_of(tiny_model, packing=False).train
    assert made.memory_gb == pytest.approx(memory_gb(shape(tiny_model, train, "float32"), longest, train), abs=0.01)


def test_a_run_that_does_not_fit_is_refused(
    tiny_model: Path, samples: list[Sample], machine: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = plan(tiny_model, samples).memory_gb
    monkeypatch.setattr(planner, "look", lambda dtype: replace(machine, device="cpu", free_gb=need - 0.05))
    with pytest.raises(MachineError) as caught:
        plan(tiny_model, samples)
    assert caught.value.code == "TL-MACHINE-MEMORY"
    assert f"{need:.1f}" in str(caught.value)
    monkeypatch.setattr(planner, "look", lambda dtype: replace(machine, device="cpu", free_gb=need + 0.05))
    assert plan(tiny_model, samples).memory_gb == need
    monkeypatch.setattr(
        planner, "look", lambda dtype: replace(machine, device="cuda", gpu_memory_gb=0.1, gpus=("Card",))
    )
    with pytest.raises(MachineError):
        plan(tiny_model, samples)
