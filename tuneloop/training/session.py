"""One training session: puts model, data, optimizer, checkpoints and watchers together and hands them to the loop."""

from __future__ import annotations

import importlib.metadata
import io
import random
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from peft import PeftModel
from torch import nn

from tuneloop.base.duration import about
from tuneloop.base.environment import waits_our_way
from tuneloop.base.errors import RunError
from tuneloop.base.files import folder_atomic, format_bytes
from tuneloop.base.language import current, t
from tuneloop.data.batches.loader import Steps, loader
from tuneloop.hub.resolve import on_hub
from tuneloop.methods.table import notes
from tuneloop.methods.wrap import bits_of
from tuneloop.model import checkpoint
from tuneloop.model.anatomy import never_quantised, scores_labels
from tuneloop.model.backbone import unwrap
from tuneloop.model.kernels.matmul import MatmulPrecision, chosen, matmul_precision
from tuneloop.model.load import pick_dtype
from tuneloop.recipe.schema import Recipe, Strategy
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run
from tuneloop.tasks.labels_file import write_classes
from tuneloop.tasks.task import Task, TaskContext
from tuneloop.training import device, distributed
from tuneloop.training.adapter_card import adapter_card
from tuneloop.training.callbacks import Due, HeldOut, Metrics, Saver, Screen
from tuneloop.training.digests import ending
from tuneloop.training.frozen_policy import CachePolicy, held_out, kept_blocks, measurements
from tuneloop.training.guards import Guard, require_held_out
from tuneloop.training.input import TrainingInput
from tuneloop.training.interrupt import Interrupt
from tuneloop.training.loop import Callback, held_loss, train
from tuneloop.training.model_folder import save_result
from tuneloop.training.packing import rows
from tuneloop.training.row_watch import ROWS_FILE, row_watches
from tuneloop.training.sampler import sampler_for
from tuneloop.training.state import TrainState, build, unordered_operation
from tuneloop.training.waiting import Waiting
from tuneloop.training.watching import Watcher


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


def session(run: Run, assembled: TrainingInput, *, resume: bool = False) -> Outcome:
    """Train what was assembled into runs/<name>-<n>/adapter (or model/).

    With `resume` the newest checkpoint that verifies is taken up; the rest of the run is then bit for bit what it would
    have been. Raises TL-RUN-NO-CHECKPOINT, TL-MACHINE-DISK, TL-RUN-NAN.
    """
    accelerator = _accelerator()
    recipe, folder = assembled.recipe, assembled.folder
    setup = build(run, assembled, accelerator.device)
    model, unordered = setup.model, unordered_operation(setup.objective, setup.train)
    wrapped, optimizer = accelerator.prepare(setup.objective, setup.optimizer)
    state = _take_up(setup) if resume else _start(setup, assembled.task)
    file = sys.stderr if accelerator.is_main_process else io.StringIO()
    lines = Due(recipe.train.logging_strategy, recipe.train.logging_steps, setup.batches.steps_per_epoch, setup.total)
    screen = Screen(setup.total, setup.meter, file, first=state.step, due=lines)
    for line in _notices(setup, unordered):
        screen.say(line)
    require_held_out(recipe.train, len(setup.held))
    guard = Guard(recipe.train.early_stopping, recipe.train.keep_best, setup.metrics, setup.events, screen.say)
    waiting = Waiting(setup.events)
    watchers = _watchers(setup, screen, accelerator, guard, assembled, waiting) if accelerator.is_main_process else []
    steps = Steps(
        setup.batches,
        setup.train,
        state.step,
        setup.total,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    frozen = kept_blocks(model, _cache_policy(setup, state, screen))
    interruptible = Interrupt(lambda: screen.say(t("Stopping after this step; once more to stop at once.")))
    multiplying = matmul_precision(_matmul(recipe, assembled.task))
    with multiplying, device.watched(run.checkpoints), frozen, waiting, interruptible as interrupt:
        try:
            if not distributed.shared(guard.stops):  # else it was killed between its early stop and its result
                train(
                    accelerator,
                    wrapped,
                    optimizer,
                    setup.scheduler,
                    loader(steps, recipe.train.workers),
                    state,
                    max_grad_norm=recipe.train.max_grad_norm,
                    callbacks=watchers,
                    stop=lambda: distributed.anyone(interrupt.requested or (distributed.leads() and guard.stops)),
                    late=pick_dtype(recipe.model.dtype) == torch.float16,
                    seed=recipe.seed,
                )
        finally:
            screen.close()
    if accelerator.is_main_process:
        _close(setup, state, model, assembled.context, folder, guard)
    accelerator.wait_for_everyone()
    return Outcome(state.step >= setup.total or distributed.shared(guard.stops), state.step, setup.total)


def _notices(setup: TrainState, unordered: str) -> Iterator[str]:
    """What there is to say of a run before its first step; `unordered` is an operation that has no fixed order."""
    train = setup.recipe.train
    yield from notes(setup.model, train)
    if train.packing and not setup.batches.packing:
        yield t("This model cannot be packed exactly: one dialogue a row.")
    if unordered:
        yield t(
            "{operation} adds up in any order on this card: a resumed run may differ by rounding.", operation=unordered
        )


def _matmul(recipe: Recipe, task: Task) -> MatmulPrecision:
    """A loss that compares the model with what it was is too fine for coarse products, unless they are asked for."""
    return chosen(recipe.train.matmul, exact=task.precompute_reference is not None)


def _cache_policy(setup: TrainState, state: checkpoint.State, screen: Screen) -> CachePolicy:
    """What the output of frozen blocks is kept for, and who hears of it."""
    settings, per_epoch = setup.recipe.train, setup.batches.steps_per_epoch
    sides = {"train": setup.train}
    if len(setup.held) and measurements(settings, setup.total, per_epoch) > 1:
        sides["validation"] = setup.held
    before = [bool(line["kept"]) for line in setup.events.lines() if line.get("event") == "frozen_blocks"]
    decided = distributed.shared(False if state.step >= setup.total else before[-1] if before else None)

    def report(cached: bool, why: Mapping[str, str], size: int, seconds: float) -> None:
        if distributed.leads():
            setup.events.event(
                "frozen_blocks", kept=cached, why=why[current()], why_in=why, bytes=size, seconds=seconds
            )
        if cached:
            screen.say(
                t(
                    "The frozen blocks ran once for all epochs: {size} in {time}.",
                    size=format_bytes(size),
                    time=about(seconds),
                )
            )

    return CachePolicy(
        settings, setup.run.path / "trunk", sides, setup.total / per_epoch, setup.batches.packing, decided, report
    )


def _watchers(
    setup: TrainState,
    screen: Screen,
    accelerator: Accelerator,
    guard: Guard,
    assembled: TrainingInput,
    waiting: Waiting,
) -> list[Callback]:
    """What watches the loop, in the order that resuming relies on: a step's lines stand before its checkpoint."""
    settings, per_epoch = setup.recipe.train, setup.batches.steps_per_epoch
    budget, packing = settings.token_budget, setup.batches.packing

    def due(strategy: Strategy, every: int, *, last: bool = True) -> Due:
        return Due(strategy, every, per_epoch, setup.total, last)

    def measure() -> tuple[float, float]:
        # Not the wrapped model: its forward would wait for the other processes, which do not measure.
        # In float32 whatever training multiplies in: what a later measurement of the result will find as well.
        with matmul_precision("float32"), held_out(setup.objective):
            total = held_loss(setup.objective, rows(setup.held, budget, packing=packing), accelerator.device)
        return total, float(setup.held.weights.sum())

    def save(at: checkpoint.State) -> Path:
        setup.metrics.sync()
        return checkpoint.save(
            setup.run.checkpoints,
            at,
            setup.objective,
            setup.optimizer,
            setup.scheduler,
            keep=settings.save_total_limit,
            spare=guard.spare,
        )

    evaluated = due(settings.eval_strategy, settings.eval_steps, last=settings.eval_strategy != "no")
    saved = due(settings.save_strategy, settings.save_steps)
    logged = due(settings.logging_strategy, settings.logging_steps)
    samples = Journal(setup.run.path / "samples.jsonl")
    sampler = sampler_for(
        setup.model, assembled.context.tokenizer, setup.recipe, assembled.questions(), samples, screen.say
    )
    listeners = [guard.measured, *([sampler.measured] if sampler else [])]
    watcher = Watcher.of(setup, screen.say)
    row_watch = row_watches(
        setup, assembled.dataset, lambda step: logged(step) or saved(step) or guard.saves(step), watcher.give
    )
    alone = accelerator.device.type == "cpu" and accelerator.num_processes == 1  # else the others are its own ranks
    return [
        Metrics(
            setup.metrics,
            setup.meter,
            logged,
            per_epoch,
            late=accelerator.device.type != "cpu",
        ),
        screen,
        HeldOut(setup.metrics, setup.meter, evaluated, per_epoch, measure, screen.say, listeners),
        *row_watch,
        watcher,
        Saver(save, setup.events, setup.meter, lambda step: saved(step) or guard.saves(step)),
        *([waiting] if alone and waiting.threads > 1 and waits_our_way() else []),
    ]


def _start(setup: TrainState, task: Task) -> checkpoint.State:
    # Dropout starts from here, whatever was drawn while the model was made.
    torch.manual_seed(setup.recipe.seed)
    random.seed(setup.recipe.seed)
    if not distributed.leads():
        return checkpoint.State()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    setup.events.event(
        "started",
        step=0,
        total=setup.total,
        packing=setup.batches.packing,
        versions=versions,
        products=_matmul(setup.recipe, task),
    )
    return checkpoint.State()


def _take_up(setup: TrainState) -> checkpoint.State:
    path = checkpoint.newest(setup.run.checkpoints)
    if path is None:
        raise RunError("TL-RUN-NO-CHECKPOINT", where=str(setup.run.checkpoints))
    device.require_device(path)
    state = checkpoint.restore(path, setup.objective, setup.optimizer, setup.scheduler)
    if distributed.leads():
        setup.metrics.rewind(state.step)
        Journal(setup.run.path / "samples.jsonl").rewind(state.step)
        Journal(setup.run.path / ROWS_FILE).rewind(state.step)
        setup.events.event("resumed", step=state.step, path=path.name)
    return state


def _card(setup: TrainState, state: checkpoint.State, model: nn.Module, base: Path) -> str:
    dataset = str(setup.run.read("dataset.json").get("hash") or "")
    hub = on_hub(setup.recipe.model.name)
    base_model = unwrap(model)
    scores = int(base_model.config.num_labels or 0) if scores_labels(base_model) else 0
    return adapter_card(
        setup.run.path,
        setup.recipe,
        base,
        steps=state.step,
        dataset=dataset,
        hub=hub,
        scores=scores,
        skipped=never_quantised(base_model) if scores else (),
    )


def _close(
    setup: TrainState, state: checkpoint.State, model: nn.Module, setting: TaskContext, folder: Path, guard: Guard
) -> None:
    """Write the result into a temporary sibling, then give it its name; or note that the run stopped early."""
    if state.step < setup.total and not guard.stops:
        setup.events.event("stopped", step=state.step)
        return
    best = guard.best(setup.run.checkpoints, state.step)
    if best is not None:
        checkpoint.restore_weights(best, setup.objective)
    target = setup.run.path / ("adapter" if isinstance(model, PeftModel) else "model")
    with folder_atomic(target, sync=True) as draft:
        save_result(model, setting.tokenizer, folder, draft, setup.recipe.model, bits_of(setup.recipe.train))
        write_classes(draft, setting)
        if target.name == "adapter":  # in place of the empty form that PEFT leaves
            (draft / "README.md").write_text(_card(setup, state, model, folder), encoding="utf-8")
    shutil.rmtree(setup.run.path / "trunk", ignore_errors=True)  # nothing is left to resume
    meter = setup.meter
    setup.events.event(
        "finished",
        step=state.step,
        seconds=round(meter.total_seconds, 2),
        tokens_per_second=round(meter.tokens_per_second, 1),
        memory_gb=round(meter.peak_gb, 3),
        **ending(target, setting.tokenizer, setup.held.samples),
    )
