"""One training session: puts model, data, optimizer, checkpoints and watchers together and hands them to the loop."""

from __future__ import annotations

import importlib.metadata
import io
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from peft import PeftModel
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tuneloop.base.duration import about
from tuneloop.base.errors import RunError
from tuneloop.base.files import folder_atomic, format_bytes
from tuneloop.base.language import t
from tuneloop.base.refusals import require_space
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.loader import Steps, loader
from tuneloop.data.batches.pack import Batch, pack_examples
from tuneloop.data.batches.plan import BatchPlan, batch_plan
from tuneloop.hub.resolve import on_hub
from tuneloop.methods.table import METHODS, notes, parameters
from tuneloop.methods.wrap import bits_of
from tuneloop.model import checkpoint, determinism, precision
from tuneloop.model.anatomy import never_quantised, scores_labels
from tuneloop.model.backbone import unwrap
from tuneloop.model.kernels.install import install
from tuneloop.model.kernels.matmul import MatmulPrecision, chosen, matmul_precision
from tuneloop.model.load import pick_dtype
from tuneloop.monitor.meters import Meter
from tuneloop.recipe.schema import Recipe, Strategy
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run
from tuneloop.tasks.labels_file import write_classes
from tuneloop.tasks.objective import Objective
from tuneloop.tasks.task import Task, TaskContext
from tuneloop.training import device, distributed, threads
from tuneloop.training.adapter_card import adapter_card
from tuneloop.training.callbacks import Due, HeldOut, Metrics, Saver, Screen
from tuneloop.training.frozen_policy import Keeping, held_out, kept_blocks, measurements
from tuneloop.training.guards import Guard, require_held_out
from tuneloop.training.input import TrainingInput
from tuneloop.training.interrupt import Interrupt
from tuneloop.training.loop import Callback, held_loss, train
from tuneloop.training.model_folder import save_result, started
from tuneloop.training.optim import optimizer_for, scheduler_for, total_steps
from tuneloop.training.packing import packs_exactly, rows
from tuneloop.training.sampler import sampler_for


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended. `finished` is false after Ctrl-C: a checkpoint is there and the run can go on."""

    finished: bool
    step: int
    total: int


def _accelerator() -> Accelerator:
    """accelerate for devices and processes; precision and accumulation are ours, whatever its launcher set.

    Raises TL-RUN-DISTRIBUTED for sharded training (FSDP, DeepSpeed), which checkpoints here do not hold yet.
    """
    accelerator = Accelerator(cpu=distributed.on_cpu(), mixed_precision="no")
    accelerator.gradient_accumulation_steps = 1
    kind = accelerator.distributed_type
    if kind not in {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}:
        raise RunError("TL-RUN-DISTRIBUTED", where=str(kind), kind=str(kind))
    return accelerator


def _place(model: nn.Module, device: torch.device) -> None:
    """Onto the device before anything is measured: what is checked is what will run."""
    determinism.settle(device)
    if not getattr(model, "is_quantized", False):  # bitsandbytes has placed its weights when it read them
        model.to(device)


def _room(run: Run, recipe: Recipe, model: nn.Module) -> None:
    """Checkpoints hold the trained weights and two moments of each; the result holds the weights once more."""
    trained = parameters(model)[1]
    keep = (recipe.train.save_total_limit or 10) + 1
    require_space(run.path, 4 * trained * (3 * keep + 1))


@dataclass(frozen=True, slots=True, eq=False)
class TrainState:
    """What a session is made of."""

    run: Run
    recipe: Recipe
    model: nn.Module
    inner: Objective
    items: Examples
    held: Examples
    batches: BatchPlan
    total: int
    optimizer: Optimizer
    scheduler: LRScheduler
    metrics: Journal
    events: Journal
    meter: Meter


def _state(run: Run, model: nn.Module, assembled: TrainingInput) -> TrainState:
    recipe, task, items = assembled.recipe, assembled.task, assembled.train
    held = assembled.held.take(np.flatnonzero(assembled.held.weights))
    kept = pick_dtype(recipe.model.dtype)
    with precision.computing(model, kept):
        inner = task.objective(model, items, assembled.context)
    precision.cast(inner, kept)
    packing = METHODS[recipe.train.method].packable and packs_exactly(inner, items, held)
    with precision.computing(inner, kept):  # a reference is of the same products as what is compared with it
        items, held = (_precomputed(task, inner, side, rows(side, recipe.train.token_budget, packing=packing),
                                 run.path / f"reference-{name}.npy")
                       for side, name in ((items, "train"), (held, "validation")))  # fmt: skip
    batches = batch_plan(recipe, items, packing=packing)
    total = total_steps(recipe.train, batches.steps_per_epoch)
    optimizer = optimizer_for(inner, recipe.train)
    scheduler = scheduler_for(optimizer, recipe.train, total)
    return TrainState(run, recipe, model, inner, items, held, batches, total, optimizer, scheduler,
                      Journal(run.metrics), Journal(run.events), Meter())  # fmt: skip


def _precomputed(task: Task, inner: Objective, items: Examples, passes: Iterator[Batch], keep: Path) -> Examples:
    """The items with what must be known of the model before its first step; on the same machine it is found once."""
    if task.precompute_reference is None:
        return items
    if next(inner.parameters()).device.type != distributed.world().device.type:
        inner.to(distributed.world().device)
    with distributed.world().local_main_process_first():
        return task.precompute_reference(inner, items, passes, keep)


def _unordered(inner: Objective, items: Examples) -> str:
    """The operation for which this model's backward passes have no fixed order on a card, "" where they have one.

    The shortest item tells; nothing is left of its pass.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return ""
    shortest = int(np.where(items.weights > 0, items.lengths, np.iinfo(np.int32).max).argmin())
    batch, was = pack_examples(items, [shortest]).to(next(inner.parameters()).device), inner.training
    try:
        return determinism.probe(lambda: inner.train()(batch).total)
    finally:
        inner.train(was)
        inner.zero_grad(set_to_none=True)


def session(run: Run, assembled: TrainingInput, *, resume: bool = False) -> Outcome:
    """Train what was assembled into runs/<name>-<n>/adapter (or model/).

    With `resume` the newest checkpoint that verifies is taken up; the rest of the run is then bit for bit what it would
    have been. Raises TL-RUN-NO-CHECKPOINT, TL-MACHINE-DISK, TL-RUN-NAN.
    """
    accelerator = _accelerator()
    recipe, folder = assembled.recipe, assembled.folder
    model = started(recipe, folder, assembled.task, assembled.context)
    _room(run, recipe, model)
    _place(model, accelerator.device)
    if not precision.mixed(model, pick_dtype(recipe.model.dtype)):  # they are for one type throughout
        install(model)
    parts = _state(run, model, assembled)
    unordered = _unordered(parts.inner, parts.items)
    wrapped, optimizer = accelerator.prepare(parts.inner, parts.optimizer)
    state = _take_up(parts) if resume else _start(parts, assembled.task)
    file = sys.stderr if accelerator.is_main_process else io.StringIO()
    lines = Due(recipe.train.logging_strategy, recipe.train.logging_steps, parts.batches.steps_per_epoch, parts.total)
    screen = Screen(parts.total, parts.meter, file, first=state.step, due=lines)
    for line in notes(model, recipe.train):
        screen.say(line)
    if recipe.train.packing and not parts.batches.packing:
        screen.say(t("This model cannot be packed exactly: one dialogue a row."))
    if unordered:
        screen.say(t("{operation} adds up in any order on this card: a resumed run may differ by rounding.",
                     operation=unordered))  # fmt: skip
    require_held_out(recipe.train, len(parts.held))
    guard = Guard(recipe.train.early_stopping, recipe.train.keep_best, parts.metrics, parts.events, screen.say)
    watchers = _watchers(parts, screen, accelerator, guard, assembled) if accelerator.is_main_process else []
    steps = Steps(
        parts.batches, parts.items, state.step, parts.total,
        rank=accelerator.process_index, world_size=accelerator.num_processes,
    )  # fmt: skip
    frozen = kept_blocks(model, _keeping(parts, state, screen))
    asked = Interrupt(lambda: screen.say(t("Stopping after this step; once more to stop at once.")))
    multiplying = matmul_precision(_precision(recipe, assembled.task))
    with multiplying, device.watched(run.checkpoints), frozen, threads.restored(), asked as interrupt:
        try:
            if not distributed.shared(
                guard.asked
            ):  # else it was stopped early, and killed before its result was written
                train(
                    accelerator, wrapped, optimizer, parts.scheduler, loader(steps, recipe.train.workers), state,
                    max_grad_norm=recipe.train.max_grad_norm, callbacks=watchers,
                    stop=lambda: distributed.anyone(interrupt.asked or (distributed.leads() and guard.asked)),
                    late=pick_dtype(recipe.model.dtype) == torch.float16, seed=recipe.seed,
                )  # fmt: skip
        finally:
            screen.close()
    if accelerator.is_main_process:
        _close(parts, state, model, assembled.context, folder, guard)
    accelerator.wait_for_everyone()
    return Outcome(state.step >= parts.total or distributed.shared(guard.asked), state.step, parts.total)


def _precision(recipe: Recipe, task: Task) -> MatmulPrecision:
    """A loss that compares the model with what it was is too fine for coarse products, unless they are asked for."""
    return chosen(recipe.train.matmul, exact=task.precompute_reference is not None)


def _keeping(parts: TrainState, state: checkpoint.State, screen: Screen) -> Keeping:
    """What the output of frozen blocks is kept for, and who hears of it."""
    settings, per_epoch = parts.recipe.train, parts.batches.steps_per_epoch
    sides = {"train": parts.items}
    if len(parts.held) and measurements(settings, parts.total, per_epoch) > 1:
        sides["validation"] = parts.held
    before = [bool(line["kept"]) for line in parts.events.lines() if line.get("event") == "frozen_blocks"]
    decided = distributed.shared(False if state.step >= parts.total else before[-1] if before else None)

    def told(kept: bool, why: str, size: int, seconds: float) -> None:
        if distributed.leads():
            parts.events.event("frozen_blocks", kept=kept, why=why, bytes=size, seconds=seconds)
        if kept:
            screen.say(t("The frozen blocks ran once for all epochs: {size} in {time}.",
                         size=format_bytes(size), time=about(seconds)))  # fmt: skip

    return Keeping(settings, parts.run.path / "trunk", sides, parts.total / per_epoch, parts.batches.packing,
                   decided, told)  # fmt: skip


def _watchers(
    parts: TrainState, screen: Screen, accelerator: Accelerator, guard: Guard, assembled: TrainingInput
) -> list[Callback]:
    """What watches the loop, in the order that resuming relies on: a step's lines stand before its checkpoint."""
    settings, per_epoch = parts.recipe.train, parts.batches.steps_per_epoch
    budget, packing = settings.token_budget, parts.batches.packing

    def due(strategy: Strategy, every: int, *, last: bool = True) -> Due:
        return Due(strategy, every, per_epoch, parts.total, last)

    def measure() -> tuple[float, float]:
        # Not the wrapped model: its forward would wait for the other processes, which do not measure.
        # In float32 whatever training multiplies in: what a later measurement of the result will find as well.
        with matmul_precision("float32"), held_out(parts.inner):
            total = held_loss(parts.inner, rows(parts.held, budget, packing=packing), accelerator.device)
        return total, float(parts.held.weights.sum())

    def save(at: checkpoint.State) -> Path:
        parts.metrics.sync()
        return checkpoint.save(
            parts.run.checkpoints,
            at,
            parts.inner,
            parts.optimizer,
            parts.scheduler,
            keep=settings.save_total_limit,
            spare=guard.spare,
        )

    evaluated = due(settings.eval_strategy, settings.eval_steps, last=settings.eval_strategy != "no")
    saved = due(settings.save_strategy, settings.save_steps)
    samples = Journal(parts.run.path / "samples.jsonl")
    sampler = sampler_for(parts.model, assembled.context.tokenizer, parts.recipe, assembled.questions(), samples,
                          screen.say)  # fmt: skip
    told = [guard.measured, *([sampler.measured] if sampler else [])]
    alone = accelerator.device.type == "cpu" and accelerator.num_processes == 1  # else the others are its own ranks
    return [
        Metrics(
            parts.metrics,
            parts.meter,
            due(settings.logging_strategy, settings.logging_steps),
            per_epoch,
            late=accelerator.device.type != "cpu",
        ),
        screen,
        HeldOut(parts.metrics, parts.meter, evaluated, per_epoch, measure, screen.say, told),
        Saver(save, parts.events, parts.meter, lambda step: saved(step) or guard.saves(step)),
        *([threads.Threads(parts.events, screen.say)] if alone and torch.get_num_threads() > 1 else []),
    ]


def _start(parts: TrainState, task: Task) -> checkpoint.State:
    # Dropout starts from here, whatever was drawn while the model was made.
    torch.manual_seed(parts.recipe.seed)
    random.seed(parts.recipe.seed)
    if not distributed.leads():
        return checkpoint.State()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    parts.events.event("started", step=0, total=parts.total, packing=parts.batches.packing, versions=versions,
                       products=_precision(parts.recipe, task))  # fmt: skip
    return checkpoint.State()


def _take_up(parts: TrainState) -> checkpoint.State:
    path = checkpoint.newest(parts.run.checkpoints)
    if path is None:
        raise RunError("TL-RUN-NO-CHECKPOINT", where=str(parts.run.checkpoints))
    device.require_device(path)
    state = checkpoint.restore(path, parts.inner, parts.optimizer, parts.scheduler)
    if distributed.leads():
        parts.metrics.rewind(state.step)
        Journal(parts.run.path / "samples.jsonl").rewind(state.step)
        parts.events.event("resumed", step=state.step, path=path.name)
    return state


def _card(parts: TrainState, state: checkpoint.State, model: nn.Module, base: Path) -> str:
    dataset = str(parts.run.read("dataset.json").get("hash") or "")
    hub = on_hub(parts.recipe.model.name)
    base_model = unwrap(model)
    scores = int(base_model.config.num_labels or 0) if scores_labels(base_model) else 0
    return adapter_card(parts.run.path, parts.recipe, base, steps=state.step, dataset=dataset, hub=hub, scores=scores,
                        skipped=never_quantised(base_model) if scores else ())  # fmt: skip


def _close(
    parts: TrainState, state: checkpoint.State, model: nn.Module, setting: TaskContext, folder: Path, guard: Guard
) -> None:
    """Write the result into a temporary sibling, then give it its name; or note that the run stopped early."""
    if state.step < parts.total and not guard.asked:
        parts.events.event("stopped", step=state.step)
        return
    best = guard.best(parts.run.checkpoints, state.step)
    if best is not None:
        checkpoint.restore_weights(best, parts.inner)
    target = parts.run.path / ("adapter" if isinstance(model, PeftModel) else "model")
    with folder_atomic(target, sync=True) as draft:
        save_result(model, setting.tokenizer, folder, draft, parts.recipe.model, bits_of(parts.recipe.train))
        write_classes(draft, setting)
        if target.name == "adapter":  # in place of the empty form that PEFT leaves
            (draft / "README.md").write_text(_card(parts, state, model, folder), encoding="utf-8")
    shutil.rmtree(parts.run.path / "trunk", ignore_errors=True)  # nothing is left to resume
    meter = parts.meter
    parts.events.event(
        "finished", step=state.step, seconds=round(meter.total_seconds, 2),
        tokens_per_second=round(meter.tokens_per_second, 1), memory_gb=round(meter.peak_gb, 3),
    )  # fmt: skip
