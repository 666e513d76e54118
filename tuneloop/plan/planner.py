"""The plan: what a run will use, why, how long and how much memory, before it costs anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneloop.data.augmenting.endpoint import notice
from tuneloop.data.batches import BatchPlan, batch_plan
from tuneloop.data.tokens import Sample
from tuneloop.errors import MachineError
from tuneloop.language import t
from tuneloop.model.load import pick_dtype
from tuneloop.monitor.duration import about
from tuneloop.plan.budget import (
    EFFICIENCY,
    EFFICIENCY_HALF,
    Shape,
    forward_flops,
    generation_seconds,
    memory_gb,
    shape,
    step_flops,
)
from tuneloop.plan.cautions import cautions, nothing_held
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
    """A run foreseen. `seconds` of training alone; `memory_gb` at its peak, in GB (1e9 bytes).

    `evaluation`: seconds, answers (to be written before and once more after), longest (tokens of one),
    tokens_per_second (assumed while writing). `warnings` are sentences about the dataset.
    """

    machine: Hardware
    model: dict[str, Any]
    data: dict[str, Any]
    choices: tuple[Choice, ...]
    seconds: float
    evaluation: dict[str, Any]
    memory_gb: float
    warnings: tuple[str, ...] = ()

    @property
    def total_seconds(self) -> float:
        """Training and evaluation."""
        return self.seconds + float(self.evaluation["seconds"])

    def as_dict(self) -> dict[str, Any]:
        """What plan.json holds."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Held:
    """What evaluation will have before it. `prompts` are those of show and of all probes."""

    rows: int = 0
    tokens: int = 0
    prompts: int = 0


def make(
    recipe: Recipe, folder: Path, samples: Sequence[Sample], manifest: Mapping[str, Any] | None = None, *,
    prompts: int = 0, ledger: str = "ledger.jsonl",
) -> Plan:  # fmt: skip
    """Foresee a run on `samples` of the dataset with this `manifest`, evaluated on `prompts` prompts beside its rows.

    Raises TL-MACHINE-MEMORY when it will not fit.
    """
    train = recipe.train
    machine = look(pick_dtype(recipe.model.dtype), recipe.evaluate.batch_size)
    size = shape(folder, train, recipe.model.dtype)
    batches = batch_plan(recipe, samples)
    steps = total_steps(train, batches.steps_per_epoch)
    epochs = steps / batches.steps_per_epoch
    tokens, labels = sum(batches.lengths), sum(s.labels for s in samples)
    speed = machine.gflops * _share(machine, size) * 1e9
    seconds = step_flops(size, tokens, labels, train) * epochs / speed
    fullest = min(train.token_budget, _fullest(batches))
    memory = memory_gb(size, fullest, train)
    if memory > machine.room_gb:
        raise MachineError("TL-MACHINE-MEMORY", need=f"{memory:.1f}", free=f"{machine.room_gb:.1f}")
    found = manifest or {}
    counts = found.get("counts") or {}
    held = Held(
        int(counts.get("validation") or 0), int((found.get("tokens") or {}).get("validation") or 0), prompts
    )  # fmt: skip
    said = cautions(counts, found.get("steps") or (), ledger) if counts else []
    if counts and not held.rows:
        said.append(nothing_held())
    if sent := notice(recipe.prepare.augment.endpoint):
        said.append(sent)
    return Plan(
        machine=machine,
        model={
            "name": recipe.model.name, "parameters": size.parameters, "trainable": size.trainable,
            "dtype": str(pick_dtype(recipe.model.dtype)).removeprefix("torch."),
        },
        data={"dialogues": len(samples), "tokens": tokens, "label_tokens": labels, "steps": steps},
        choices=tuple(_choices(recipe, machine, size, batches, steps)),
        seconds=round(seconds, 1),
        evaluation=_evaluation(recipe, machine, size, held, measured=2 + _measurements(recipe, steps, epochs)),
        memory_gb=round(memory, 2),
        warnings=tuple(said),
    )  # fmt: skip


def _share(machine: Hardware, size: Shape) -> float:
    """Share of the measured rate of matrix products that training reaches."""
    return EFFICIENCY if machine.device != "cpu" or size.bytes_each == 4 else EFFICIENCY_HALF


def _measurements(recipe: Recipe, steps: int, epochs: float) -> int:
    """How often the held-out loss is measured during training."""
    train = recipe.train
    every = {"no": 0, "epoch": math.ceil(epochs - 1e-9), "steps": math.ceil(steps / train.eval_steps)}
    return every[train.eval_strategy]


def _evaluation(recipe: Recipe, machine: Hardware, size: Shape, held: Held, *, measured: int) -> dict[str, Any]:
    """Seconds for the answers before and after and for the held-out loss, `measured` times.

    Every answer counts as long as it may become; most end earlier.
    """
    part = recipe.evaluate
    rows = min(part.rows, held.rows)
    speed = machine.gflops * _share(machine, size) * 1e9
    # A prompt is no longer than its dialogue; what a question of a probe takes to read is nothing beside its answer.
    read = forward_flops(size, rows * held.tokens // max(held.rows, 1), rows) / speed
    batches = math.ceil(rows / part.batch_size) + math.ceil(held.prompts / part.batch_size)
    write = generation_seconds(size, machine, batches, part.max_new_tokens)
    answers = rows + held.prompts
    loss = forward_flops(size, held.tokens, held.tokens) / speed
    return {
        "seconds": round(2 * (read + write) + measured * loss, 1),
        "answers": answers,
        "longest": part.max_new_tokens,
        "tokens_per_second": round(answers * part.max_new_tokens / write, 1) if write else 0.0,
    }


def times(plan: Plan) -> list[Choice]:
    """The times of a plan for the reader: training, evaluation, both."""
    measured = plan.evaluation
    why = t("estimated: no answers, the held-out loss alone")
    if measured["answers"]:
        why = t(
            "estimated; answers before and after: {n} each, of at most {longest} tokens, at {speed} tokens a second",
            n=measured["answers"], longest=measured["longest"], speed=f"{measured['tokens_per_second']:.0f}",
        )  # fmt: skip
    return [
        Choice(t("training time"), about(plan.seconds), t("estimated from the operations of a step")),
        Choice(t("evaluation time"), about(float(measured["seconds"])), why),
        Choice(t("time in all"), about(plan.total_seconds), t("without loading the model")),
    ]


def _fullest(batches: BatchPlan) -> int:
    """Tokens of the fullest forward pass of the first epoch."""
    return max(sum(batches.lengths[i] for i in b) for k in range(batches.steps_per_epoch) for b in batches.step(k))


def _choices(recipe: Recipe, machine: Hardware, size: Shape, batches: BatchPlan, steps: int) -> list[Choice]:
    train = recipe.train
    passes = sum(len(batches.step(k)) for k in range(batches.steps_per_epoch)) / batches.steps_per_epoch
    device = machine.gpus[0] if machine.gpus else t("CPU, cores: {n}", n=machine.cores)
    dtype = str(pick_dtype(recipe.model.dtype)).removeprefix("torch.")
    return [
        Choice(t("device"), device, t("{rate} GFLOP/s measured in {dtype}", rate=f"{machine.gflops:.0f}", dtype=dtype)),
        Choice(
            t("method"), train.method,
            t("{part} % of {all} parameters are trained", part=f"{100 * size.trainable / size.parameters:.2f}",
              all=f"{size.parameters:,}"),
        ),
        Choice(
            t("batch"), t("dialogues a step: {n}", n=train.batch_size),
            t("forward passes a step: {n} on average, at most {budget} tokens each, no padding",
              n=f"{passes:.1f}", budget=train.token_budget),
        ),
        Choice(
            t("steps"), str(steps),
            t("dialogues: {n}, epochs: {epochs}", n=len(batches.lengths),
              epochs=f"{steps / batches.steps_per_epoch:.3g}"),
        ),
        Choice(
            t("learning rate"), f"{train.learning_rate:g}",
            t("{schedule}, steps in which it rises: {n}", schedule=train.schedule, n=warmup_steps(train, steps)),
        ),
    ]  # fmt: skip
