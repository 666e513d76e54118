"""What exact resume costs: sums in a fixed order, and reading loss and norm at every step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tuneloop.base.language import t
from tuneloop.data.batches.pack import Batch, pack
from tuneloop.data.tokens.encode import Sample
from tuneloop.methods.wrap import wrap
from tuneloop.model import determinism
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import TrainPart
from tuneloop.selftest.lines import FailedError, Lines
from tuneloop.selftest.parity import samples
from tuneloop.selftest.speed import Workload
from tuneloop.selftest.training import Ground
from tuneloop.tasks.loss import LossModel


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds a step, and the trained weights after the last, on the CPU."""

    seconds: float
    weights: tuple[Tensor, ...]

    def same(self, other: Measured) -> bool:
        return all(torch.equal(a, b) for a, b in zip(self.weights, other.weights, strict=True))


@contextmanager
def _order(fixed: bool) -> Iterator[None]:
    """Inside, sums in a fixed order or in any, whatever this process was set to."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(fixed, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _steps(
    model: nn.Module,
    rows: list[Batch],
    start: list[Tensor],
    device: torch.device,
    *,
    fixed: bool,
    read: bool,
    steps: int,
) -> Measured:
    """Steps of AdamW over the rows from the weights `start`; `read` waits for loss and norm at each."""
    weights = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for weight, initial in zip(weights, start, strict=True):
            weight.copy_(initial)
    optimizer, seen, began = torch.optim.AdamW(weights, lr=1e-3, fused=True), list[Any](), 0.0
    with _order(fixed):
        for k in range(steps + 1):
            if k == 1:  # the first one compiles, allocates and chooses kernels
                _wait(device)
                began = time.perf_counter()
            loss = model(rows[k % len(rows)].to(device)).total / 100
            with determinism.backward():
                loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
            seen.append((float(loss), float(norm)) if read else (loss.detach(), norm))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        _wait(device)
    return Measured((time.perf_counter() - began) / steps, tuple(w.detach().cpu() for w in weights))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _rows(every: list[Sample], budget: int) -> list[Batch]:
    """Full rows of at most `budget` tokens."""
    batches, held = list[Batch](), list[Sample]()
    for sample in every:
        if held and sum(len(s.ids) for s in held) + len(sample.ids) > budget:
            batches.append(pack(held))
            held = []
        held.append(sample)
    return [*batches, pack(held)]


def measure(lines: Lines, ground: Ground, device: torch.device, work: Workload) -> None:
    """Two lines: what each costs. A fixed order that is none fails."""
    torch.manual_seed(0)
    model: Any = load_model(ground.model, "auto")
    model.to(device)
    train = TrainPart(method="lora", lora={"rank": work.rank, "targets": work.targets})
    objective = LossModel(wrap(model, train, 0).to(device)).train()
    start = [p.detach().clone() for p in objective.parameters() if p.requires_grad]
    rows = _rows(samples(ground, work.rows), work.budget)

    def run(*, fixed: bool, read: bool) -> Measured:
        return _steps(objective, rows, start, device, fixed=fixed, read=read, steps=work.steps)

    def order() -> str:
        run(fixed=False, read=False)
        free, again = run(fixed=False, read=False), run(fixed=False, read=False)
        fixed, twice = run(fixed=True, read=False), run(fixed=True, read=False)
        summary = t(
            "{a:.1f} ms a step in any order ({same} twice), {b:.1f} ms in a fixed one: {cost:+.1f} %",
            a=1e3 * free.seconds,
            b=1e3 * fixed.seconds,
            cost=100 * (fixed.seconds / free.seconds - 1),
            same=t("the same bits") if free.same(again) else t("other bits"),
        )
        if not fixed.same(twice):
            raise FailedError(summary + t("; its weights differ from one time to the next"))
        return summary

    def reading() -> str:
        late, each = run(fixed=True, read=False), run(fixed=True, read=True)
        return t(
            "{a:.1f} ms a step without, {b:.1f} ms with: {cost:+.1f} %",
            a=1e3 * late.seconds,
            b=1e3 * each.seconds,
            cost=100 * (each.seconds / late.seconds - 1),
        )

    lines.claim(t("cost"), t("sums in a fixed order"), order)
    lines.claim(t("cost"), t("loss and norm read at every step"), reading)
