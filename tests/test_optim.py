from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tuneloop.model.load import load_model, wrap
from tuneloop.sections import TrainPart
from tuneloop.train.optim import curve, optimizer_for, scheduler_for, total_steps, warmup_steps


def part(**train: Any) -> TrainPart:
    return TrainPart.model_validate(train)


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "steps"),
    [
        (1, 7, 7),
        (3, 7, 21),
        (0.5, 7, 4),
        (1.5, 3, 5),
        (0.01, 7, 1),
        (0.1, 10, 1),
        (0.3, 10, 3),
        (2.1, 10, 21),
        (1.1, 110, 121),
    ],
)
def test_epochs_are_taken_at_their_word(epochs: float, per_epoch: int, steps: int) -> None:
    assert total_steps(part(epochs=epochs), per_epoch) == steps


def test_a_number_of_steps_beats_the_epochs() -> None:
    assert total_steps(part(epochs=1, max_steps=100), 7) == 100
    assert total_steps(part(epochs=10, max_steps=2), 7) == 2


def test_warm_up_is_a_share_or_a_number() -> None:
    assert warmup_steps(part(warmup_ratio=0.1), 25) == 3
    assert warmup_steps(part(warmup_ratio=0), 25) == 0
    assert warmup_steps(part(warmup_ratio=0.5, warmup_steps=2), 25) == 2
    assert warmup_steps(part(warmup_steps=0), 25) == 0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (1, 1), (0, 10), (3, 10), (10, 10), (20, 10)])
def test_every_step_learns_and_none_too_fast(schedule: str, warmup: int, steps: int) -> None:
    factor = curve(schedule, warmup, steps)
    values = [factor(k) for k in range(steps)]
    assert all(0 < v <= 1 for v in values)
    rising, falling = values[:warmup], values[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if warmup < steps:
        assert falling[0] == 1
    assert factor(steps) >= 0
    assert factor(10 * steps) >= 0


def test_the_curves_are_those_of_their_names() -> None:
    assert [curve("cosine", 2, 10)(k) for k in (0, 1, 2, 6)] == pytest.approx([0.5, 1, 1, 0.5])
    assert curve("cosine", 2, 10)(4) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert [curve("linear", 0, 4)(k) for k in range(4)] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert {curve("constant", 1, 9)(k) for k in range(9)} == {1.0}


def test_biases_and_norms_are_not_decayed(tiny_model: Path) -> None:
    model = wrap(load_model(tiny_model), part(method="full"), 0)
    settings = part(method="full", weight_decay=0.3, betas=(0.8, 0.95), learning_rate=0.02)
    optimizer = optimizer_for(model, settings)
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in plain["params"]} == {1}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    assert all((g["lr"], g["betas"]) == (0.02, (0.8, 0.95)) for g in optimizer.param_groups)


def test_only_what_is_trained_is_stepped(tiny_model: Path) -> None:
    model = wrap(load_model(tiny_model), part(lora={"rank": 2}), 0)
    optimizer = optimizer_for(model, part())
    assert len(optimizer.param_groups) == 1
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {
        id(p) for p in model.parameters() if p.requires_grad
    }


def test_the_schedule_sets_the_rate_of_each_step() -> None:
    model = nn.Linear(2, 2)
    settings = part(learning_rate=0.5, schedule="linear", warmup_steps=2)
    optimizer = optimizer_for(model, settings)
    scheduler = scheduler_for(optimizer, settings, 6)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        model(torch.ones(2)).sum().backward()
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.375, 0.25, 0.125])
