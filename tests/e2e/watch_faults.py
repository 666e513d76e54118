"""Faults for the child of a watched run, each put in where it arises; the rest is the run's own.

Each is a function of the optimizer step (from 1) or of the rows, not of how often something was called: a run that is
taken up meets it again as it would have.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tuneloop.data.batches.loader import Step, Steps
from tuneloop.data.batches.pack import Batch
from tuneloop.tasks.classify import LabelModel
from tuneloop.tasks.loss import LossModel
from tuneloop.tasks.objective import Losses, Objective
from tuneloop.training import optim
from tuneloop.training.callbacks import Saver


@dataclass
class Now:
    """The optimizer step (from 1) that this process is at; the loader of one process reads a step when it begins."""

    step: int = 0


def now(at_step: Callable[[int], None] = lambda step: None) -> Now:
    """Follows the steps of this process; `at_step` is called before each."""
    here, inner = Now(), Steps.__getitem__

    def read(self: Steps, i: int) -> Step:
        here.step = self.first + i + 1
        at_step(here.step)
        return inner(self, i)

    Steps.__getitem__ = read  # type: ignore[method-assign]
    return here


def losing(fault: Callable[[Batch, Losses], Losses]) -> None:
    """Training passes, not those that measure, give what `fault` makes of their losses."""
    for kind in (LossModel, LabelModel):

        def forward(self: Objective, batch: Batch, inner: Callable[[Any, Batch], Losses] = kind.forward) -> Losses:
            losses = inner(self, batch)
            return fault(batch, losses) if self.training and torch.is_grad_enabled() else losses

        kind.forward = forward  # type: ignore[method-assign]


def no_number(row: int) -> None:
    """Whatever batch holds this row of the training side loses NaN."""

    def fault(batch: Batch, losses: Losses) -> Losses:
        return Losses(losses.total * math.nan, losses.per_item, losses.metrics) if row in batch.members else losses

    losing(fault)


def no_memory(step: int, rows: int) -> None:
    """From this step on there is no memory for a pass of more rows."""
    here = now()

    def fault(batch: Batch, losses: Losses) -> Losses:
        if here.step >= step and len(batch.segments) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return losses

    losing(fault)


def faded(step: int) -> None:
    """From this step on next to nothing of the gradient arrives, though the loss is what it is."""
    here = now()

    def fault(batch: Batch, losses: Losses) -> Losses:
        if here.step < step:
            return losses
        still = losses.total.detach()
        return Losses(still + (losses.total - still) * 1e-6, losses.per_item, losses.metrics)

    losing(fault)


def rate_zero(step: int) -> None:
    """The schedule gives a learning rate of zero from this step on."""
    inner = optim.curve

    def curve(schedule: str, warmup: int, steps: int) -> Callable[[int], float]:
        factor = inner(schedule, warmup, steps)
        return lambda k: 0.0 if k + 1 >= step else factor(k)

    optim.curve = curve


def slow_loader(step: int, last: int, times: float) -> None:
    """From this step to the last one each batch takes `times` as long to come as a whole step took before."""
    began: list[float] = []

    def wait(at: int) -> None:
        began.append(time.monotonic())
        if step <= at <= last:
            before = began[: step - 1]
            time.sleep(times * (before[-1] - before[step // 2]) / (len(before) - 1 - step // 2))

    now(wait)


def killed(step: int) -> None:
    """This process is killed after this step, when its line is written and its checkpoint, if one is due."""
    inner = Saver.on_step

    def on_step(self: Saver, at: Any, result: Any) -> None:
        inner(self, at, result)
        if at.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Saver.on_step = on_step  # type: ignore[method-assign]
