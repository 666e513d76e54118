from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.assembled import assembled
from tests.tasks import test_prefer
from tests.training.test_session import RECORDS, Sessions, lines
from tuneloop.model import precision
from tuneloop.model.load import load_model
from tuneloop.tasks.task import TaskContext
from tuneloop.training.session import session

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture
def sessions(tiny_model: Path, tmp_path: Path) -> Sessions:
    return Sessions(tiny_model, tmp_path)


def types(model: nn.Module, trained: bool) -> set[torch.dtype]:
    return {p.dtype for p in model.parameters() if p.requires_grad == trained}


def test_adapters_are_float32_on_a_half_model_and_need_no_autocast(tiny_model: Path) -> None:
    model = get_peft_model(load_model(tiny_model, "float16"), LoraConfig(target_modules=["q_proj"]))
    precision.hold(model, FP16, cast_frozen=False)
    assert types(model, True) == {FP32}
    assert types(model, False) == {FP16}
    assert not precision.mixed(model, FP16)


def test_modules_trained_whole_beside_adapters_need_autocast(tiny_model: Path) -> None:
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"])
    model = get_peft_model(load_model(tiny_model, "bfloat16"), config)
    precision.hold(model, BF16, cast_frozen=False)
    assert types(model, True) == {FP32}
    assert precision.mixed(model, BF16)
    assert not precision.mixed(model, FP32)


def test_frozen_weights_of_a_whole_model_become_half(tiny_model: Path) -> None:
    model = load_model(tiny_model, "float32").requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    precision.hold(model, BF16, cast_frozen=True)
    assert types(model, True) == {FP32}
    assert types(model, False) == {BF16}
    with precision.computing(model, BF16):
        out = model(input_ids=torch.arange(9)[None], labels=torch.arange(9)[None])
    out.loss.backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {FP32}


def test_float32_is_left_alone(tiny_model: Path) -> None:
    model = load_model(tiny_model, "float32").requires_grad_(True)
    precision.hold(model, FP32, cast_frozen=True)
    assert types(model, True) == {FP32}
    assert not precision.mixed(model, FP32)
    forward = model.forward
    precision.cast(model, FP32)
    assert model.forward == forward


def run(sessions: Sessions, dtype: str, **train: Any) -> list[dict[str, Any]]:
    started, recipe = sessions.begin(epochs=2, **train)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": dtype})})
    assert sessions.go(started, recipe).finished
    return lines(started.metrics)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_half_precision_learns_as_float32_does(sessions: Sessions, method: str, dtype: str) -> None:
    """On a CPU, the twin of what a card does. Small steps that half precision alone would lose are made."""
    rate = 5e-3 if method == "lora" else 2e-4
    whole, half = (run(sessions, d, method=method, learning_rate=rate) for d in ("float32", dtype))
    losses = [[m["loss"] for m in r if "loss" in m] for r in (whole, half)]
    assert losses[0][-1] < losses[0][0] - 0.02
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_tiny_steps_are_not_lost_in_bfloat16(sessions: Sessions) -> None:
    started, recipe = sessions.begin(method="full", learning_rate=1e-6, warmup_ratio=0)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "bfloat16"})})
    assert sessions.go(started, recipe).finished
    before = load_model(sessions.folder, "float32").state_dict()
    after = load_model(started.path / "model", "float32").state_dict()
    moved = [float((after[n] - w).abs().mean()) for n, w in before.items() if w.ndim == 2]
    assert min(moved) > 1e-7


def test_the_gradient_of_float16_is_divided_after_the_backward_pass(sessions: Sessions) -> None:
    """Its norm, told before clipping, is that of float32: divided once, and not lost."""
    norms = [
        [m["grad_norm"] for m in run(sessions, d, max_steps=2) if "grad_norm" in m] for d in ("float32", "float16")
    ]
    assert norms[1] == pytest.approx(norms[0], rel=2e-2)


@pytest.mark.parametrize("keep", ["on", "off"])
def test_frozen_blocks_in_half_precision(sessions: Sessions, keep: str) -> None:
    """Their output is the same computed once or anew, and what is trained above learns as in float32."""
    how: dict[str, Any] = {"method": "freeze", "freeze": {"layers": 1}, "learning_rate": 2e-4, "keep_trunk": keep}
    whole, half = (run(sessions, d, **how) for d in ("float32", "bfloat16"))
    losses = [[m["loss"] for m in r if "loss" in m] for r in (whole, half)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def in_bfloat16(recipe: Any) -> Any:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "bfloat16"})})


@pytest.mark.parametrize("method", ["full", "freeze"])
def test_the_reference_is_found_in_the_type_that_training_finds_it_in(
    method: str, tiny_model: Path, tmp_path: Path
) -> None:
    """One pair a row and a step, so that both pass the same row; before the first step they find the same."""
    made = test_prefer.Sessions(tiny_model, tmp_path, test_prefer.PAIRS)
    how = {"freeze": {"layers": 1}} if method == "freeze" else {}
    run, recipe = made.begin("dpo", method=method, batch_size=1, max_steps=1, packing=False, **how)
    made.go(run, in_bfloat16(recipe))
    assert test_prefer.lines(run, "margin") == [0]
    assert test_prefer.lines(run, "reward_better") == [0]


def test_answers_while_training_are_written_in_the_type_of_training(sessions: Sessions) -> None:
    run, recipe = sessions.begin(method="freeze", freeze={"layers": 1}, sample_answers=2)
    setting = TaskContext(recipe.train, sessions.tokenizer)
    given = assembled(in_bfloat16(recipe), sessions.folder, sessions.samples, sessions.held, context=setting,
                      questions=RECORDS[20:])  # fmt: skip
    assert session(run, given).finished
    assert len(lines(run.path / "samples.jsonl")) == 2
