"""One training session: puts model, data, optimizer, checkpoints and watchers together and hands them to the loop."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn

from tuneloop.data.batches import Packed, Steps, batch_plan, loader, pack
from tuneloop.data.tokens import Sample
from tuneloop.disk import require_room
from tuneloop.errors import RunError
from tuneloop.language import t
from tuneloop.model import checkpoint
from tuneloop.model.load import load_model, save_result, wrap
from tuneloop.model.loss import LossModel, head_is_exact
from tuneloop.model.methods import METHODS, parameters
from tuneloop.monitor.meters import Meter
from tuneloop.recipe import Recipe
from tuneloop.runs import Run
from tuneloop.train.callbacks import Due, HeldOut, Journal, Metrics, Saver, Screen
from tuneloop.train.interrupt import Interrupt
from tuneloop.train.loop import held_loss, train
from tuneloop.train.optim import optimizer_for, scheduler_for, total_steps

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended. `finished` is false after Ctrl-C: a checkpoint is there and the run can go on."""

    finished: bool
    step: int
    total: int


def packs_exactly(model: LossModel, samples: Sequence[Sample]) -> bool:
    """Whether two samples in one row lose exactly what they lose alone; if not, the model must not be packed."""
    pair = sorted((s for s in samples if s.labels), key=lambda s: len(s.ids))[:2]
    apart = sum(held_loss(model, [pack([s])], torch.device("cpu"))[0] for s in pair)
    together, labels = held_loss(model, [pack(pair)], torch.device("cpu"))
    return abs(apart - together) <= 1e-2 * max(1, labels)


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
    probe = torch.from_numpy(min(samples, key=lambda s: len(s.ids)).ids).long().unsqueeze(0)
    return LossModel(model, own_head=not head_is_exact(model, probe))


def _room(run: Run, recipe: Recipe, model: nn.Module) -> None:
    """Checkpoints hold the trained weights and two moments of each; the result holds the weights once more."""
    trained = parameters(model)[1]
    keep = (recipe.train.save_total_limit or 10) + 1
    require_room(run.path, 4 * trained * (3 * keep + 1))


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
    settings = recipe.train
    accelerator = Accelerator()
    model = wrap(load_model(folder, recipe.model.dtype), settings, recipe.seed)
    _room(run, recipe, model)
    inner = loss_model(model, samples)
    packing = METHODS[settings.method].packable and packs_exactly(inner, samples)
    batches = batch_plan(recipe, samples, packing=packing)
    total = total_steps(settings, batches.steps_per_epoch)
    optimizer = optimizer_for(inner, settings)
    scheduler = scheduler_for(optimizer, settings, total)
    wrapped, prepared = accelerator.prepare(inner, optimizer)
    metrics, events = Journal(run.metrics), Journal(run.events)
    state = checkpoint.State()
    if resume:
        state = _take_up(run, inner, optimizer, scheduler, metrics, events)
    else:
        # Dropout starts from here whatever was drawn while the model was made.
        torch.manual_seed(recipe.seed)
        events.event("started", step=0, total=total, packing=packing)

    meter = Meter()
    screen = Screen(total, meter, sys.stderr, first=state.step)
    if settings.packing and not packing:
        screen.say(t("This model cannot be packed exactly: one dialogue a row."))

    def save(at: checkpoint.State) -> Path:
        metrics.sync()
        return checkpoint.save(
            run.checkpoints, at, inner, optimizer, scheduler, keep=settings.save_total_limit
        )

    def measure() -> tuple[float, int]:
        return held_loss(wrapped, rows(held, settings.token_budget, packing=packing), accelerator.device)

    def due(what: str, every: int, *, last: bool = True) -> Due:
        return Due(getattr(settings, f"{what}_strategy"), every, batches.steps_per_epoch, total, last)

    per_epoch = batches.steps_per_epoch
    callbacks: list[Any] = []
    if accelerator.is_main_process:
        callbacks = [
            Metrics(metrics, meter, due("logging", settings.logging_steps), per_epoch),
            screen,
            HeldOut(metrics, meter, due("eval", settings.eval_steps, last=settings.eval_strategy != "no"), per_epoch,
                    measure, screen.say),
            Saver(save, events, meter, due("save", settings.save_steps)),
        ]  # fmt: skip
    steps = Steps(
        batches, samples, state.step, total, rank=accelerator.process_index, ranks=accelerator.num_processes
    )
    with Interrupt(lambda: screen.say(t("Stopping after this step; once more to stop at once."))) as interrupt:
        try:
            train(
                accelerator, wrapped, prepared, scheduler, loader(steps, settings.workers), state,
                max_grad_norm=settings.max_grad_norm, callbacks=callbacks, stop=lambda: interrupt.asked,
            )  # fmt: skip
        finally:
            screen.close()
    if state.step < total:
        events.event("stopped", step=state.step)
        return Outcome(False, state.step, total)
    if accelerator.is_main_process:
        _finish(run, model, tokenizer, folder)
        events.event("finished", step=state.step, seconds=round(meter.total_seconds, 2),
                     tokens_per_second=round(meter.tokens_per_second, 1), memory_gb=round(meter.peak_gb, 3))  # fmt: skip
    return Outcome(True, state.step, total)


def _take_up(
    run: Run, model: nn.Module, optimizer: Any, scheduler: Any, metrics: Journal, events: Journal
) -> checkpoint.State:
    path = checkpoint.newest(run.checkpoints)
    if path is None:
        raise RunError("TL-RUN-NO-CHECKPOINT", where=str(run.checkpoints))
    state = checkpoint.restore(path, model, optimizer, scheduler)
    metrics.rewind(state.step)
    events.event("resumed", step=state.step, path=path.name)
    return state


def _finish(run: Run, model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write the result into a temporary sibling, then give it its name."""
    target = run.path / ("adapter" if isinstance(model, PeftModel) else "model")
    draft = run.path / f".{target.name}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    save_result(model, tokenizer, folder, draft)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(draft, target)

