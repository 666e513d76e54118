"""One attempt of a session, and what watches its loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from tuneloop.base.environment import waits_our_way
from tuneloop.model import checkpoint
from tuneloop.model.kernels.matmul import matmul_precision
from tuneloop.monitor.machine import Machine
from tuneloop.recipe.schema import Strategy
from tuneloop.runs.journal import Journal
from tuneloop.training.callbacks import Due, HeldOut, Metrics, Saver, Screen
from tuneloop.training.frozen_policy import held_out
from tuneloop.training.guards import Guard
from tuneloop.training.held_rows import HeldLosses
from tuneloop.training.input import TrainingInput
from tuneloop.training.interrupt import Interrupt
from tuneloop.training.loop import Callback
from tuneloop.training.mending import Mender
from tuneloop.training.outlets import Outlets
from tuneloop.training.packing import rows
from tuneloop.training.row_losses import row_losses
from tuneloop.training.row_sources import RowSources
from tuneloop.training.row_watch import RowWatch, row_watches
from tuneloop.training.sampler import sampler_for
from tuneloop.training.state import TrainState
from tuneloop.training.waiting import Waiting
from tuneloop.training.watching import Watcher


@dataclass(slots=True)
class Attempt:
    """What one attempt of a session works with, from where it takes the run up to its end or a remedy."""

    accelerator: Accelerator
    assembled: TrainingInput
    setup: TrainState
    wrapped: nn.Module
    """The objective, as accelerate wraps it."""
    optimizer: Any
    state: checkpoint.State
    screen: Screen
    guard: Guard
    mender: Mender
    saver: Saver
    waiting: Waiting
    watcher: Watcher | None
    """The leader's."""
    outlets: Outlets
    interrupt: Interrupt
    callbacks: list[Callback] = field(default_factory=list)
    """What watches the loop, once it runs."""

    def save_now(self) -> None:
        """Save the state of now, which the loop had no time for, and what waits to be written before it."""
        for callback in self.callbacks:
            if isinstance(callback, RowWatch):
                callback.on_end(self.state)
        self.saver.save(self.state)


def saver_for(setup: TrainState, guard: Guard, mender: Mender) -> Saver:
    """What writes checkpoints. Where the disk has no room for one, old ones make it."""
    settings = setup.recipe.train
    due = Due(settings.save_strategy, settings.save_steps, setup.batches.steps_per_epoch, setup.total)

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

    return Saver(save, setup.events, setup.meter, lambda step: due(step) or guard.saves(step), lambda: mender.goes_back)


def watchers(attempt: Attempt) -> list[Callback]:
    """What watches the loop, in the order that resuming relies on: a step's lines stand before its checkpoint."""
    accelerator, setup, guard, screen = attempt.accelerator, attempt.setup, attempt.guard, attempt.screen
    settings, per_epoch = setup.recipe.train, setup.batches.steps_per_epoch
    budget, packing = settings.token_budget, setup.batches.packing

    def due(strategy: Strategy, every: int, *, last: bool = True) -> Due:
        return Due(strategy, every, per_epoch, setup.total, last)

    def measure() -> HeldLosses:
        # Not the wrapped model: its forward would wait for the other processes, which do not measure.
        # In float32 whatever training multiplies in: what a later measurement of the result will find as well.
        with matmul_precision("float32"), held_out(setup.objective):
            batches = rows(setup.held, budget, packing=packing and not setup.amendment.micro_batch_size)
            total, each = row_losses(setup.objective, batches, setup.held, accelerator.device)
        return HeldLosses.of(total, each, setup.held)

    evaluated = due(settings.eval_strategy, settings.eval_steps, last=settings.eval_strategy != "no")
    samples = Journal(setup.run.path / "samples.jsonl")
    assembled = attempt.assembled
    sampler = sampler_for(
        setup.model, assembled.context.tokenizer, setup.recipe, assembled.questions(), samples, screen.say
    )
    measured = [guard.measured, *([sampler.measured] if sampler else [])]
    alone = accelerator.device.type == "cpu" and accelerator.num_processes == 1  # else the others are its own ranks
    return [
        Metrics(
            setup.metrics,
            setup.meter,
            due(settings.logging_strategy, settings.logging_steps),
            per_epoch,
            late=accelerator.device.type != "cpu",
            sources=_sources(setup, assembled),
            machine=Machine(setup.run.path, accelerator.device),
            listeners=[attempt.outlets.line],
        ),
        screen,
        HeldOut(
            setup.metrics,
            setup.meter,
            evaluated,
            per_epoch,
            measure,
            screen.say,
            measured,
            rows=Journal(setup.run.path / "held.jsonl"),
            listeners=[attempt.outlets.line],
        ),
        *(row_watches(setup, assembled.dataset, attempt.saver.due, attempt.watcher.give) if attempt.watcher else []),
        *([attempt.watcher] if attempt.watcher else []),
        attempt.saver,
        *([attempt.waiting] if alone and attempt.waiting.threads > 1 and waits_our_way() else []),
    ]


def _sources(setup: TrainState, assembled: TrainingInput) -> RowSources | None:
    """Which file each training row is from; None where all are from one."""
    if len({source["file"] for source in assembled.dataset.manifest.get("sources", ())}) < 2:
        return None
    sources = RowSources.of(setup.train, assembled.dataset.files("train"))
    return sources if len(sources.names) > 1 else None
