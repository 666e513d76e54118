"""The plan: what a run will use, why, how long and how much memory, before it costs anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneloop.data.batches import BatchPlan, batch_plan
from tuneloop.data.tokens import Sample
from tuneloop.errors import MachineError
from tuneloop.language import t
from tuneloop.model.load import pick_dtype
from tuneloop.plan.budget import EFFICIENCY, EFFICIENCY_HALF, Shape, memory_gb, shape, step_flops
from tuneloop.plan.hardware import Hardware, look
from tuneloop.sections import Recipe
from tuneloop.train.optim import total_steps, warmup_steps


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing the plan settles, and why."""

    what: str
    value: str
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A run foreseen. `seconds` of training alone; `memory_gb` at its peak."""

    machine: Hardware
    model: dict[str, Any]
    data: dict[str, Any]
    choices: tuple[Choice, ...]
    seconds: float
    memory_gb: float

    def as_dict(self) -> dict[str, Any]:
        """What plan.json holds."""
        return asdict(self)


def make(recipe: Recipe, folder: Path, samples: Sequence[Sample]) -> Plan:
    """Foresee a run. Raises TL-MACHINE-MEMORY when it will not fit."""
    train = recipe.train
    machine = look(pick_dtype(recipe.model.dtype))
    size = shape(folder, train, recipe.model.dtype)
    batches = batch_plan(recipe, samples)
    steps = total_steps(train, batches.steps_per_epoch)
    epochs = steps / batches.steps_per_epoch
    tokens, labels = sum(batches.lengths), sum(s.labels for s in samples)
    share = EFFICIENCY if machine.device != "cpu" or size.bytes_each == 4 else EFFICIENCY_HALF
    seconds = step_flops(size, tokens, labels, train) * epochs / (machine.gflops * share * 1e9)
    fullest = min(train.token_budget, _fullest(batches))
    memory = memory_gb(size, fullest, train)
    if memory > machine.room_gb:
        raise MachineError("TL-MACHINE-MEMORY", need=f"{memory:.1f}", free=f"{machine.room_gb:.1f}")
    return Plan(
        machine=machine,
        model={
            "name": recipe.model.name, "parameters": size.parameters, "trainable": size.trainable,
            "dtype": str(pick_dtype(recipe.model.dtype)).removeprefix("torch."),
        },
        data={"dialogues": len(samples), "tokens": tokens, "label_tokens": labels, "steps": steps},
        choices=tuple(_choices(recipe, machine, size, batches, steps)),
        seconds=round(seconds, 1),
        memory_gb=round(memory, 2),
    )  # fmt: skip


def _fullest(batches: BatchPlan) -> int:
    """Tokens of the fullest forward pass of the first epoch."""
    return max(sum(batches.lengths[i] for i in b) for k in range(batches.steps_per_epoch) for b in batches.step(k))


def _choices(recipe: Recipe, machine: Hardware, size: Shape, batches: BatchPlan, steps: int) -> list[Choice]:
    train = recipe.train
    passes = sum(len(batches.step(k)) for k in range(batches.steps_per_epoch)) / batches.steps_per_epoch
    device = machine.gpus[0] if machine.gpus else t("CPU, {n} cores", n=machine.cores)
    dtype = str(pick_dtype(recipe.model.dtype)).removeprefix("torch.")
    return [
        Choice(t("device"), device, t("{rate} GFLOP/s measured in {dtype}", rate=f"{machine.gflops:.0f}", dtype=dtype)),
        Choice(
            t("method"), train.method,
            t("{part} % of {all} parameters are trained", part=f"{100 * size.trainable / size.parameters:.2f}",
              all=f"{size.parameters:,}"),
        ),
        Choice(
            t("batch"), t("{n} dialogues a step", n=train.batch_size),
            t("{n} forward passes a step on average, at most {budget} tokens each, no padding",
              n=f"{passes:.1f}", budget=train.token_budget),
        ),
        Choice(
            t("steps"), str(steps),
            t("{n} dialogues, {epochs} epochs", n=len(batches.lengths),
              epochs=f"{steps / batches.steps_per_epoch:.3g}"),
        ),
        Choice(
            t("learning rate"), f"{train.learning_rate:g}",
            t("{schedule}, rises over {n} steps", schedule=train.schedule, n=warmup_steps(train, steps)),
        ),
    ]  # fmt: skip
