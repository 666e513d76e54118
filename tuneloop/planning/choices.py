"""What a plan settles, line by line: a choice, its value, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneloop.base.files import format_bytes
from tuneloop.base.language import current, listed, t
from tuneloop.data.batches.plan import BatchPlan
from tuneloop.methods.table import METHODS
from tuneloop.model.load import pick_dtype
from tuneloop.planning.budget import STATE, ModelShape
from tuneloop.planning.hardware import Hardware
from tuneloop.recipe.schema import Recipe, TrainPart
from tuneloop.training.optim import warmup_steps

COMMA = {"en": ", ", "zh": "，"}


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """One thing the plan settles, and why."""

    what: str
    value: str
    why: str


def fullest_pass(batches: BatchPlan) -> int:
    """Tokens of the fullest forward pass of the first epoch."""
    return max(sum(batches.lengths[i] for i in b) for k in range(batches.steps_per_epoch) for b in batches.step(k))


def _method(train: TrainPart, size: ModelShape) -> str:
    """What there is to say of the method: how much it trains, and what it does beside that."""
    part = 100 * size.trainable / size.parameters
    sentences = [t("{part} % of {all} parameters are trained", part=f"{part:.2f}" if part >= 0.01 else f"{part:.1g}",
              all=f"{size.parameters:,}")]  # fmt: skip
    if METHODS[train.method].quantize:
        sentences.append(
            t("frozen weights in {bits}: {size} in all", bits=train.qlora.bits, size=format_bytes(size.bytes_all))
        )
    if size.virtual:
        sentences.append(t("virtual tokens before each text: {n}", n=size.virtual))
    if size.below:
        sentences.append(
            t("no gradient goes below block {n} of {all}", n=size.below + 1, all=size.layers)
            if size.below < size.layers
            else t("no gradient goes into the blocks")
        )
    return COMMA[current()].join(sentences)


def _frozen(size: ModelShape, unkept: str) -> list[PlanChoice]:
    """What becomes of blocks that are not trained, where there are some."""
    if not size.below:
        return []
    how = t("run at every step") if unkept else t("run once for all epochs")
    why = unkept or t("frozen blocks: {n} of {all}; their output is kept on the disk", n=size.below, all=size.layers)
    return [PlanChoice(t("frozen blocks"), how, why)]


def task_line(name: str, manifest: Mapping[str, Any]) -> PlanChoice:
    kinds = listed(manifest.get("kinds") or ())
    why = t("kind of the rows: {kinds}", kinds=kinds) if kinds else t("the recipe says so")
    return PlanChoice(t("task"), name, why)


def run_choices(
    recipe: Recipe, machine: Hardware, size: ModelShape, batches: BatchPlan, steps: int, unkept: str
) -> list[PlanChoice]:
    train = recipe.train
    device = machine.gpus[0] if machine.gpus else t("CPU, cores: {n}", n=machine.cores)
    dtype = "bfloat16" if machine.bfloat16_gflops else str(pick_dtype(recipe.model.dtype)).removeprefix("torch.")
    rate = machine.bfloat16_gflops or machine.gflops
    return [
        PlanChoice(t("device"), device, t("{rate} GFLOP/s measured in {dtype}", rate=f"{rate:.0f}", dtype=dtype)),
        PlanChoice(t("method"), train.method, _method(train, size)),
        *_frozen(size, unkept),
        *shared_choices(recipe, batches, steps),
        PlanChoice(
            t("optimizer"),
            train.optimizer,
            t("its state: {size}", size=format_bytes(round(size.trainable * STATE[train.optimizer]))),
        ),
    ]


def shared_choices(recipe: Recipe, batches: BatchPlan, steps: int) -> list[PlanChoice]:
    """What follows from rows and recipe alone: lengths, batches, steps, the learning rate."""
    train, wanted = recipe.train, recipe.prepare.max_length
    passes = sum(len(batches.step(k)) for k in range(batches.steps_per_epoch)) / batches.steps_per_epoch
    longest = t("tokens: {n}", n=max(batches.lengths))
    return [
        PlanChoice(t("longest row"), longest, f"prepare.max_length: {wanted}"),
        PlanChoice(
            t("batch"),
            t("dialogues a step: {n}", n=train.batch_size),
            t(
                "forward passes a step: {n} on average, at most {budget} tokens each, no padding",
                n=f"{passes:.1f}",
                budget=fullest_pass(batches),
            ),
        ),
        PlanChoice(
            t("steps"),
            str(steps),
            t(
                "dialogues: {n}, epochs: {epochs}",
                n=len(batches.lengths),
                epochs=f"{steps / batches.steps_per_epoch:.3g}",
            ),
        ),
        PlanChoice(
            t("learning rate"),
            f"{train.learning_rate:g}",
            t("{schedule}, steps in which it rises: {n}", schedule=train.schedule, n=warmup_steps(train, steps)),
        ),
    ]
