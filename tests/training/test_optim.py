from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from tuneloop.base.errors import MachineError
from tuneloop.methods.wrap import wrap
from tuneloop.model import checkpoint
from tuneloop.model.checkpoint import State
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import OptimizerName, TrainPart
from tuneloop.training.optim import curve, optimizer_for, scheduler_for, total_steps, warmup_steps


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


class Mixed(nn.Module):
    """An embedding, a matrix large enough to be held in 8 bits, a norm and a head."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(70, 64)
        self.matrix = nn.Linear(64, 80)
        self.norm = nn.LayerNorm(80)
        self.head = nn.Linear(80, 70, bias=False)
        self.to(dtype)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.norm(self.matrix(self.embedding(ids))))
        return out


class Course:
    """A model with its optimizer and schedule, over eight steps."""

    def __init__(self, dtype: torch.dtype = torch.float32, **train: Any) -> None:
        settings = part(**{"learning_rate": 0.01, "weight_decay": 0.1, "schedule": "linear", **train})
        self.model = Mixed(dtype)
        self.optimizer = optimizer_for(self.model, settings)
        self.scheduler = scheduler_for(self.optimizer, settings, 8)

    def run(self, *steps: int) -> list[float]:
        losses = []
        for k in steps:
            ids = torch.arange(60, dtype=torch.int64).mul(k + 1) % 70
            loss = nn.functional.cross_entropy(self.model(ids).float(), ids.flip(0))
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            losses.append(loss.item())
        return losses


NAMES = get_args(OptimizerName)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", NAMES)
def test_a_run_with_any_optimizer_goes_on_as_if_it_had_never_stopped(
    tmp_path: Path, optimizer: str, dtype: torch.dtype
) -> None:
    whole = Course(dtype, optimizer=optimizer)
    whole.run(0, 1, 2)
    path = checkpoint.save(tmp_path, State(3), whole.model, whole.optimizer, whole.scheduler, keep=None)
    expected = whole.run(3, 4, 5)
    again = Course(dtype, optimizer=optimizer)
    again.run(7)
    assert checkpoint.restore(path, again.model, again.optimizer, again.scheduler) == State(3)
    assert again.run(3, 4, 5) == expected
    for (name, a), (_, b) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        ours, theirs = again.optimizer.state[b], whole.optimizer.state[a]
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            same = torch.equal(value, ours[key]) if isinstance(value, torch.Tensor) else value == ours[key]
            assert same, (name, key)


@pytest.mark.parametrize("optimizer", NAMES)
def test_every_optimizer_learns_and_decays_no_norm(optimizer: str) -> None:
    course = Course(optimizer=optimizer, learning_rate=0.5 if optimizer == "sgd" else 0.01)
    losses = course.run(*[0] * 8)
    assert losses[-1] < losses[0] - 0.1
    decays = {p.ndim: g["weight_decay"] for g in course.optimizer.param_groups for p in g["params"]}
    assert decays == {1: 0.0, 2: 0.1}


def test_the_8_bit_ones_hold_a_quarter_of_the_state() -> None:
    def size(optimizer: str) -> int:
        course = Course(optimizer=optimizer)
        course.run(0)
        state = course.optimizer.state[course.model.matrix.weight]
        return sum(v.nbytes for k, v in state.items() if k.startswith(("state", "exp_avg")))

    assert size("adamw_8bit") * 4 == size("paged_adamw_8bit") * 4 == size("paged_adamw") == size("adamw")
    assert Course(optimizer="sgd").run(0)
    assert size("adafactor") < 0.05 * size("adamw")


def test_adafactor_moves_what_begins_at_zero() -> None:
    """A relative step, its usual form, would multiply the rate by the size of the weight: B of an adapter is 0."""
    model = nn.Linear(8, 8, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = optimizer_for(model, part(optimizer="adafactor", learning_rate=1e-2))
    model(torch.ones(8)).sum().backward()
    optimizer.step()
    assert model.weight.abs().mean().item() == pytest.approx(1e-2, rel=0.01)


def test_lora_plus_lets_b_learn_faster(tiny_model: Path) -> None:
    settings = part(lora={"rank": 2, "plus_ratio": 16}, learning_rate=0.01, warmup_steps=2, weight_decay=0.1)
    model = wrap(load_model(tiny_model), settings, 0)
    optimizer = optimizer_for(model, settings)
    rates = {p: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    names = {n: rates[p] for n, p in model.named_parameters() if p.requires_grad}
    assert {rate for n, rate in names.items() if ".lora_A." in n} == {0.01}
    assert {rate for n, rate in names.items() if ".lora_B." in n} == {0.16}
    assert len(rates) == sum(p.requires_grad for p in model.parameters())
    scheduler = scheduler_for(optimizer, settings, 10)
    assert scheduler.get_last_lr()[0] == pytest.approx(0.005), "the rate that metrics show is that of A"
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.005, 0.08])


def test_without_lora_plus_there_is_one_rate(tiny_model: Path) -> None:
    for ratio in (None, 1):
        settings = part(lora={"rank": 2, "plus_ratio": ratio})
        optimizer = optimizer_for(wrap(load_model(tiny_model), settings, 0), settings)
        assert [g["lr"] for g in optimizer.param_groups] == [2e-4]


def test_what_cannot_run_here_is_said_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes

    def broken(*_: Any) -> None:
        raise RuntimeError("no kernel for this device\nand a long story")

    monkeypatch.setattr(bitsandbytes.optim.AdamW8bit, "step", broken)
    with pytest.raises(MachineError) as caught:
        optimizer_for(nn.Linear(4, 4), part(optimizer="adamw_8bit"))
    assert caught.value.code == "TL-MACHINE-OPTIMIZER"
    assert caught.value.facts["error"] == "no kernel for this device"


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MachineError) as caught:
        optimizer_for(nn.Linear(4, 4), part(optimizer="paged_adamw"))
    assert caught.value.code == "TL-MACHINE-EXTRA"


def test_fused_adamw_computes_what_the_plain_one_does() -> None:
    fused, plain = Course(), Course()
    settings = [{**g} for g in plain.optimizer.param_groups]
    plain.optimizer = torch.optim.AdamW(settings, fused=False)
    plain.scheduler = scheduler_for(plain.optimizer, part(learning_rate=0.01, schedule="linear"), 8)
    assert fused.optimizer.defaults["fused"] is True
    assert fused.run(0, 1, 2, 3) == pytest.approx(plain.run(0, 1, 2, 3), abs=1e-5)
