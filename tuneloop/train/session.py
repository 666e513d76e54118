"""One training session: puts model, data, optimizer, checkpoints and watchers together and hands them to the loop."""

from __future__ import annotations

import importlib.metadata
import io
import os
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from peft import PeftModel
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tuneloop.data.batches import BatchPlan, Packed, Steps, batch_plan, loader, pack
from tuneloop.data.tokens import Sample
from tuneloop.disk import require_room
from tuneloop.errors import RunError
from tuneloop.language import t
from tuneloop.model import checkpoint
from tuneloop.model.adapter_card import adapter_card
from tuneloop.model.load import load_model, on_hub, save_result, wrap
from tuneloop.model.loss import LossModel, head_is_exact, plain
from tuneloop.model.methods import METHODS, parameters
from tuneloop.monitor.meters import Meter
from tuneloop.runs import Run
from tuneloop.sections import Recipe, Strategy
from tuneloop.train import ranks
from tuneloop.train.callbacks import Due, HeldOut, Journal, Metrics, Saver, Screen
from tuneloop.train.interrupt import Interrupt
from tuneloop.train.loop import Callback, held_loss, train
from tuneloop.train.optim import optimizer_for, scheduler_for, total_steps


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended. `finished` is false after Ctrl-C: a checkpoint is there and the run can go on."""

    finished: bool
    step: int
    total: int


def packs_exactly(model: LossModel, samples: Sequence[Sample]) -> bool:
    """Whether two samples in one row lose exactly what they lose alone; if not, the model must not be packed."""
    pair = sorted((s for s in samples if s.labels), key=lambda s: len(s.ids))[:2]
    device = next(model.parameters()).device
    apart = sum(held_loss(model, [pack([s])], device)[0] for s in pair)
    together, labels = held_loss(model, [pack(pair)], device)
    # Half precision rounds as coarsely as a small leak is; but what the second sees of the first, it rounds to no more.
    coarse = plain(model.model).dtype != torch.float32
    if abs(apart - together) > (1e-2 if coarse else 1e-4) * max(1, labels):
        return False
    if len(pair) < 2:
        return True
    first, second = pair
    other = replace(first, ids=first.ids[::-1].copy())
    leak = abs(_second(model, first, second) - _second(model, other, second))
    return leak <= (1e-3 if coarse else 1e-4) * second.labels


def _second(model: LossModel, first: Sample, second: Sample) -> float:
    """The second sample's part of the loss of a row of two."""
    row = pack([replace(first, trained=np.zeros_like(first.trained)), second])
    return held_loss(model, [row], next(model.parameters()).device)[0]


def rows(samples: Sequence[Sample], budget: int, *, packing: bool = True) -> Iterator[Packed]:
    """Held-out samples as rows of at most `budget` tokens, in order."""
    held: list[Sample] = []
    for sample in samples:
        if held and (not packing or sum(len(s.ids) for s in held) + len(sample.ids) > budget):
            yield pack(held)
            held = []
        held.append(sample)
    if held:
        yield pack(held)


def loss_model(model: nn.Module, samples: Sequence[Sample]) -> LossModel:
    """The loss around a model, with the model's own head where ours would differ."""
    probe = torch.tensor(min(samples, key=lambda s: len(s.ids)).ids.tolist()).unsqueeze(0)
    return LossModel(model, own_head=not head_is_exact(model, probe.to(next(model.parameters()).device)))


def _accelerator() -> Accelerator:
    """accelerate for devices and processes; precision and accumulation are ours, whatever its launcher set.

    Raises TL-RUN-DISTRIBUTED for sharded training (FSDP, DeepSpeed), which checkpoints here do not hold yet.
    """
    accelerator = Accelerator(cpu=ranks.on_cpu(), mixed_precision="no")
    accelerator.gradient_accumulation_steps = 1
    kind = accelerator.distributed_type
    if kind not in {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}:
        raise RunError("TL-RUN-DISTRIBUTED", where=str(kind), kind=str(kind))
    return accelerator


def _room(run: Run, recipe: Recipe, model: nn.Module) -> None:
    """Checkpoints hold the trained weights and two moments of each; the result holds the weights once more."""
    trained = parameters(model)[1]
    keep = (recipe.train.save_total_limit or 10) + 1
    require_room(run.path, 4 * trained * (3 * keep + 1))


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """What a session is made of."""

    run: Run
    recipe: Recipe
    inner: LossModel
    batches: BatchPlan
    total: int
    optimizer: Optimizer
    scheduler: LRScheduler
    metrics: Journal
    events: Journal
    meter: Meter


def _parts(run: Run, recipe: Recipe, model: nn.Module, samples: Sequence[Sample]) -> _Parts:
    inner = loss_model(model, samples)
    packing = METHODS[recipe.train.method].packable and packs_exactly(inner, samples)
    batches = batch_plan(recipe, samples, packing=packing)
    total = total_steps(recipe.train, batches.steps_per_epoch)
    optimizer = optimizer_for(inner, recipe.train)
    scheduler = scheduler_for(optimizer, recipe.train, total)
    return _Parts(run, recipe, inner, batches, total, optimizer, scheduler, Journal(run.metrics), Journal(run.events),
                  Meter())  # fmt: skip


def session(
    run: Run,
    recipe: Recipe,
    folder: Path,
    tokenizer: Any,
    samples: Sequence[Sample],
    held: Sequence[Sample],
    *,
    resume: bool = False,
) -> Outcome:
    """Train `samples` into runs/<name>-<n>/adapter (or model/).

    With `resume` the newest checkpoint that verifies is taken up; the rest of the run is then bit for bit what it would
    have been. Raises TL-RUN-NO-CHECKPOINT, TL-MACHINE-DISK, TL-RUN-NAN.
    """
    accelerator = _accelerator()
    model = wrap(load_model(folder, recipe.model.dtype), recipe.train, recipe.seed)
    _room(run, recipe, model)
    parts = _parts(run, recipe, model, samples)
    wrapped, optimizer = accelerator.prepare(parts.inner, parts.optimizer)
    state = _take_up(parts) if resume else _start(parts)
    file = sys.stderr if accelerator.is_main_process else io.StringIO()
    lines = Due(recipe.train.logging_strategy, recipe.train.logging_steps, parts.batches.steps_per_epoch, parts.total)
    screen = Screen(parts.total, parts.meter, file, first=state.step, due=lines)
    if recipe.train.packing and not parts.batches.packing:
        screen.say(t("This model cannot be packed exactly: one dialogue a row."))
    watchers = _watchers(parts, screen, held, accelerator) if accelerator.is_main_process else []
    steps = Steps(
        parts.batches, samples, state.step, parts.total,
        rank=accelerator.process_index, ranks=accelerator.num_processes,
    )  # fmt: skip
    with Interrupt(lambda: screen.say(t("Stopping after this step; once more to stop at once."))) as interrupt:
        try:
            train(
                accelerator, wrapped, optimizer, parts.scheduler, loader(steps, recipe.train.workers), state,
                max_grad_norm=recipe.train.max_grad_norm, callbacks=watchers,
                stop=lambda: ranks.anyone(interrupt.asked),
            )  # fmt: skip
        finally:
            screen.close()
    if accelerator.is_main_process:
        _close(parts, state, model, tokenizer, folder)
    accelerator.wait_for_everyone()
    return Outcome(state.step >= parts.total, state.step, parts.total)


def _watchers(parts: _Parts, screen: Screen, held: Sequence[Sample], accelerator: Accelerator) -> list[Callback]:
    """What watches the loop, in the order that resuming relies on: a step's lines stand before its checkpoint."""
    settings, per_epoch = parts.recipe.train, parts.batches.steps_per_epoch
    budget, packing = settings.token_budget, parts.batches.packing

    def due(strategy: Strategy, every: int, *, last: bool = True) -> Due:
        return Due(strategy, every, per_epoch, parts.total, last)

    def measure() -> tuple[float, int]:
        # Not the wrapped model: its forward would wait for the other processes, which do not measure.
        return held_loss(parts.inner, rows(held, budget, packing=packing), accelerator.device)

    def save(at: checkpoint.State) -> Path:
        parts.metrics.sync()
        return checkpoint.save(
            parts.run.checkpoints, at, parts.inner, parts.optimizer, parts.scheduler, keep=settings.save_total_limit
        )

    evaluated = due(settings.eval_strategy, settings.eval_steps, last=settings.eval_strategy != "no")
    return [
        Metrics(parts.metrics, parts.meter, due(settings.logging_strategy, settings.logging_steps), per_epoch),
        screen,
        HeldOut(parts.metrics, parts.meter, evaluated, per_epoch, measure, screen.say),
        Saver(save, parts.events, parts.meter, due(settings.save_strategy, settings.save_steps)),
    ]


def _start(parts: _Parts) -> checkpoint.State:
    # Dropout starts from here, whatever was drawn while the model was made.
    torch.manual_seed(parts.recipe.seed)
    random.seed(parts.recipe.seed)
    if not ranks.leads():
        return checkpoint.State()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    parts.events.event("started", step=0, total=parts.total, packing=parts.batches.packing, versions=versions)
    return checkpoint.State()


def _take_up(parts: _Parts) -> checkpoint.State:
    path = checkpoint.newest(parts.run.checkpoints)
    if path is None:
        raise RunError("TL-RUN-NO-CHECKPOINT", where=str(parts.run.checkpoints))
    state = checkpoint.restore(path, parts.inner, parts.optimizer, parts.scheduler)
    if ranks.leads():
        parts.metrics.rewind(state.step)
        parts.events.event("resumed", step=state.step, path=path.name)
    return state


def _card(parts: _Parts, state: checkpoint.State, base: Path) -> str:
    dataset = str(parts.run.read("dataset.json").get("hash") or "")
    hub = on_hub(parts.recipe.model.name)
    return adapter_card(parts.run.path, parts.recipe, base, steps=state.step, dataset=dataset, hub=hub)


def _close(parts: _Parts, state: checkpoint.State, model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write the result into a temporary sibling, then give it its name; or note that the run stopped early."""
    if state.step < parts.total:
        parts.events.event("stopped", step=state.step)
        return
    target = parts.run.path / ("adapter" if isinstance(model, PeftModel) else "model")
    draft = parts.run.path / f".{target.name}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    save_result(model, tokenizer, folder, draft, parts.recipe.model)
    if target.name == "adapter":  # in place of the empty form that PEFT leaves
        (draft / "README.md").write_text(_card(parts, state, folder), encoding="utf-8")
    for path in draft.iterdir():
        checkpoint.sync(path)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(draft, target)
    checkpoint.sync(parts.run.path)
    meter = parts.meter
    parts.events.event(
        "finished", step=state.step, seconds=round(meter.total_seconds, 2),
        tokens_per_second=round(meter.tokens_per_second, 1), memory_gb=round(meter.peak_gb, 3),
    )  # fmt: skip
