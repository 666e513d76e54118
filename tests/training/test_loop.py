from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tuneloop.base.errors import RunError
from tuneloop.data.batches.loader import Step, Steps, loader
from tuneloop.data.batches.pack import Batch, pack
from tuneloop.data.batches.plan import BatchPlan
from tuneloop.data.tokens.encode import Sample
from tuneloop.methods.wrap import wrap
from tuneloop.model.checkpoint import State
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import TrainPart
from tuneloop.tasks.loss import LossModel
from tuneloop.tasks.objective import Losses, Objective
from tuneloop.training.finite import Finite
from tuneloop.training.loop import held_loss, train
from tuneloop.training.optim import optimizer_for, scheduler_for
from tuneloop.training.step_result import StepResult

SETTINGS = TrainPart(learning_rate=0.01, schedule="constant", warmup_ratio=0)


class Seen:
    def __init__(self) -> None:
        self.results: list[StepResult] = []
        self.steps: list[int] = []
        self.ended: list[int] = []
        self.phases: list[dict[str, float]] = []

    def on_step(self, state: State, result: StepResult) -> None:
        self.steps.append(state.step)
        self.results.append(result)
        self.phases.append(result.phases.read() if result.phases is not None else {})

    def on_end(self, state: State) -> None:
        self.ended.append(state.step)


def samples(count: int = 12) -> list[Sample]:
    rng = np.random.default_rng(0)
    out = []
    for n in range(count):
        length = 6 + 5 * n % 17
        out.append(Sample(rng.integers(3, 400, length, dtype=np.int32), np.arange(length) > length // 2, f"r{n}", True))
    return out


def steps_of(every: Sequence[Sample], last: int, **more: Any) -> Any:
    plan = BatchPlan(tuple(len(s.ids) for s in every), 4, **({"token_budget": 40, "seed": 0} | more))
    return loader(Steps(plan, every, 0, last), 0)


def run(
    model: nn.Module, steps: Any, *, norm: float = 0.0, stop: Callable[[], bool] = lambda: False, start: int = 0
) -> tuple[State, Seen, Any]:
    seen, state = Seen(), State(start)
    optimizer = optimizer_for(model, SETTINGS)
    scheduler = scheduler_for(optimizer, SETTINGS, 100)
    accelerator = Accelerator(cpu=True)
    wrapped, prepared = accelerator.prepare(model, optimizer)
    try:
        train(accelerator, wrapped, prepared, scheduler, steps, state, max_grad_norm=norm, callbacks=[seen], stop=stop)
    finally:
        seen.optimizer = optimizer  # type: ignore[attr-defined]
    return state, seen, optimizer


@pytest.fixture
def model(tiny_model: Path) -> LossModel:
    return LossModel(wrap(load_model(tiny_model), TrainPart(method="full"), 0))


def test_a_step_is_one_mean_over_all_its_label_tokens(model: LossModel) -> None:
    """Not the mean of the micro-batches' means: rows of few labels must not weigh more."""
    every = samples()
    step = next(iter(steps_of(every, 1)))
    assert len(step.batches) > 1
    assert len({len(m.targets) for m in step.batches}) > 1
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    total = sum(model(m).total for m in step.batches) / step.label_tokens
    grads = torch.autograd.grad(total, list(model.parameters()))
    _, seen, _ = run(model, [step])
    result = seen.results[0]
    assert result.read().loss == pytest.approx(total.item(), rel=1e-6)
    norm = torch.stack([g.norm() for g in grads]).norm().item()
    assert result.read().grad_norm == pytest.approx(norm, rel=1e-4)
    # Adam's first step is the rate in the direction of the gradient's sign.
    for (name, p), g in zip(model.named_parameters(), grads, strict=True):
        sure = g.abs() > 1e-5
        assert torch.allclose((p - before[name])[sure], -0.01 * g.sign()[sure], atol=1e-4), name


def test_the_gradient_is_clipped_and_told_as_it_was(model: LossModel) -> None:
    taken: list[float] = []
    hook = torch.optim.Optimizer.step

    class Watch(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            grads = [p.grad.norm() for g in self.param_groups for p in g["params"]]
            taken.append(torch.stack(grads).norm().item())
            return hook(self, closure) if closure else super().step(closure)

    every = samples()
    for limit in (0.05, 0.0):
        seen = Seen()
        optimizer = Watch(model.parameters(), lr=1e-9)
        accelerator = Accelerator(cpu=True)
        wrapped, prepared = accelerator.prepare(model, optimizer)
        scheduler = scheduler_for(optimizer, SETTINGS, 100)
        train(accelerator, wrapped, prepared, scheduler, steps_of(every, 1), State(), max_grad_norm=limit, callbacks=[seen],
              stop=lambda: False)  # fmt: skip
        assert seen.results[0].read().grad_norm > 0.1
        assert taken[-1] == pytest.approx(limit or seen.results[0].read().grad_norm, rel=1e-3)


def test_it_runs_the_steps_in_order_and_counts_on(model: LossModel) -> None:
    state, seen, _ = run(model, steps_of(samples(), 5), start=7)
    assert state.step == 12
    assert seen.steps == [8, 9, 10, 11, 12]
    assert [r.step.number for r in seen.results] == [0, 1, 2, 3, 4]
    assert seen.ended == [12]
    assert all(r.learning_rate == 0.01 for r in seen.results)
    assert seen.results[-1].read().loss < seen.results[0].read().loss
    assert all(p.grad is None for p in model.parameters())


def test_it_stops_after_the_step_in_which_it_is_asked(model: LossModel) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 2

    state, seen, _ = run(model, steps_of(samples(), 9), stop=stop)
    assert state.step == 2
    assert seen.ended == [2]


class Sick(Objective):
    """A loss model whose loss or gradient is no number from its third forward pass on."""

    def __init__(self, inner: LossModel, what: str) -> None:
        super().__init__(inner)
        self.inner, self.what, self.passes = inner, what, 0

    def forward(self, batch: Batch) -> Losses:
        self.passes += 1
        losses: Losses = self.inner(batch)
        if self.passes < 3:
            return losses
        total = losses.total
        if self.what == "loss":
            return replace(losses, total=total * float("nan"))
        # A finite loss with an infinite slope, as the root of a difference that has become 0 has.
        return replace(losses, total=total + torch.sqrt((total - total.detach()).clamp(min=0)))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_no_step_is_taken_with_what_is_no_number(model: LossModel, what: str) -> None:
    every = samples(4)
    step = next(iter(steps_of(every, 1, token_budget=500)))
    assert len(step.batches) == 1
    run(model, [step, step])  # what two good steps make of the weights
    good = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(RunError) as caught:
        run(Sick(model, what), [step, step, step, step])
    assert caught.value.code == "TL-RUN-NAN"
    assert "step 3" in str(caught.value)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert any(not torch.equal(p, good[n]) for n, p in model.named_parameters()), "two more good steps were taken"


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_card_skips_what_is_no_number_until_it_is_read(
    model: LossModel, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a card, where nobody waits for a step's numbers: torch's fused optimizer skips it, and all after it."""
    every = samples(4)
    step = next(iter(steps_of(every, 1, token_budget=500)))
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    run(model, [step, step])
    good = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(start[name])
    build = Finite.__init__

    def late(finite: Finite, *args: Any) -> None:
        build(finite, *args)
        finite.late = True

    monkeypatch.setattr(Finite, "__init__", late)
    sick, seen = Sick(model, what), Seen()
    optimizer = optimizer_for(sick, SETTINGS)
    accelerator = Accelerator(cpu=True)
    wrapped, prepared = accelerator.prepare(sick, optimizer)
    with pytest.raises(RunError) as caught:
        train(accelerator, wrapped, prepared, scheduler_for(optimizer, SETTINGS, 100), [step] * 4, State(),
              max_grad_norm=0.0, callbacks=[seen], stop=lambda: False)  # fmt: skip
    assert "step 3" in str(caught.value)
    assert seen.steps == [1, 2, 3, 4], "nobody read a number, so nobody waited"
    assert seen.ended == []
    with pytest.raises(RunError, match="step 3"):
        seen.results[3].read()
    assert all(torch.equal(p, good[n]) for n, p in model.named_parameters()), "the last good step's weights"


def test_a_step_tells_where_its_time_went_and_its_gradient_by_layer(model: LossModel) -> None:
    began = time.perf_counter()
    _, seen, _ = run(model, steps_of(samples(), 3), norm=0.1)
    whole = time.perf_counter() - began
    for result in seen.results:
        figures = result.read()
        assert list(figures.grad_groups) == ["embeddings", "layer 0", "layer 1", "rest"]
        assert sum(n**2 for n in figures.grad_groups.values()) == pytest.approx(figures.grad_norm**2, rel=1e-5)
        assert figures.grad_norm > 0.1, "before clipping"
    assert all(min(seconds[name] for name in ("forward", "backward", "optimizer")) > 0 for seconds in seen.phases)
    assert sum(sum(seconds.values()) for seconds in seen.phases) < whole


def test_dropout_is_on_while_training_and_off_for_the_held_loss(tiny_model: Path) -> None:
    settings = TrainPart.model_validate({"lora": {"rank": 4, "dropout": 0.5}})
    model = LossModel(wrap(load_model(tiny_model), settings, 0))
    for n, p in model.named_parameters():
        if "lora_B" in n:
            nn.init.normal_(p, std=0.3)
    row = [pack(samples(3))]
    cpu = torch.device("cpu")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = held_loss(model, row, cpu)
    assert held_loss(model, row, cpu) == first
    assert torch.equal(torch.get_rng_state(), state)
    model.train()
    assert held_loss(model, row, cpu) == first
    assert model.training
    assert len({model(row[0]).total.item() for _ in range(3)}) == 3


def test_held_rows_add_up(model: LossModel) -> None:
    every, cpu = samples(6), torch.device("cpu")
    total = held_loss(model, [pack(every[:2]), pack(every[2:])], cpu)
    apart = [held_loss(model, [pack([s])], cpu) for s in every]
    assert total == pytest.approx(sum(apart), rel=1e-5)
    assert held_loss(model, [], cpu) == 0.0


def test_a_row_goes_to_the_device_and_its_segments_stay() -> None:
    step: Step = next(iter(steps_of(samples(), 1)))
    moved = step.batches[0].to(torch.device("meta"))
    assert moved.segments == step.batches[0].segments
    tensors = (moved.input_ids, moved.position_ids, moved.positions, moved.targets)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
