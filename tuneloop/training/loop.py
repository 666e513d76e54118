"""The training loop, on one screen. It takes its parts as arguments and knows no recipe, file or screen."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tuneloop.data.batches.loader import Step
from tuneloop.data.batches.pack import Batch
from tuneloop.model import determinism
from tuneloop.model.checkpoint import State
from tuneloop.monitor.gradients import Gradients
from tuneloop.monitor.phases import Phases
from tuneloop.tasks.objective import Losses, Objective
from tuneloop.training import distributed
from tuneloop.training.finite import Finite
from tuneloop.training.out_of_memory import OutOfMemory, ran_out
from tuneloop.training.step_result import StepResult


class Callback(Protocol):
    """Something that watches the loop. It may read and write files; it never changes the model.

    It reads a step's numbers (`result.read()`) only when it is due to use them.
    """

    def on_step(self, state: State, outcome: StepResult) -> None: ...

    def on_end(self, state: State) -> None: ...


def train(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    scheduler: Any,
    steps: Iterable[Step],
    state: State,
    *,
    max_grad_norm: float,
    callbacks: Sequence[Callback],
    stop: Callable[[], bool],
    late: bool = False,
    seed: int = 0,
) -> State:
    """Run the steps. `model` is the wrapped `Objective`.

    The loss of a step is that sum over all micro-batches and ranks, divided by the step's weight: by its label tokens,
    or by the texts or pairs where these are counted. Gradients are averaged over ranks, so each rank scales its share
    by their number. Ends early when `stop()` is true.
    `late`, for float16, divides by the weight after the backward pass, in the trained weights' float32: the gradient of
    a mean over thousands of tokens is below what float16 can tell from zero (6e-8), that of the sum is not.
    `seed` is what several processes draw from (see `_draw`). One process goes on with the generator that it finds.
    Raises TL-RUN-NAN when the loss or its gradient is no number; the weights are those of the last good step. Raises
    TL-RUN-MEMORY on all ranks when one of them finds no memory for a step; the weights are those before it.
    """
    model.train()
    gradients, phases = Gradients(model), Phases(accelerator.device)
    inner: Objective = accelerator.unwrap_model(model)
    finite = Finite(optimizer, accelerator.device)
    for step in steps:
        _draw(accelerator, seed, state.step)
        batches = [batch.to(accelerator.device) for batch in step.batches]
        phases.end("data")
        inner.before_step(batches, lambda sums: accelerator.reduce(sums, "sum"))
        with distributed.same_end(lambda: OutOfMemory(state.step + 1), ran_out):
            share = 1 if late else step.weight
            total, sums, per_item = _passes(accelerator, model, batches, share, inner.metrics, phases)
        distributed.average_gradients(gradients.weights)
        total, sums = _added(accelerator, total, sums)
        if late:
            _divide(gradients.weights, step.weight)
        norms = gradients.clip(max_grad_norm)
        finite.see(state.step + 1, total, norms.total, step.weight)
        rate = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        phases.end("optimizer")
        state.step += 1
        seen = StepResult(step, total, norms.total, rate, finite, inner.metrics, sums, per_item, norms, phases)
        for callback in callbacks:
            callback.on_step(state, seen)
        if stop():
            break
        phases.begin()
    finite.require()
    for callback in callbacks:
        callback.on_end(state)
    return state


def _passes(
    accelerator: Accelerator,
    model: nn.Module,
    batches: Sequence[Batch],
    weight: float,
    metrics: tuple[str, ...],
    phases: Phases,
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
    """Forward and backward over a step's batches, each loss divided by `weight`; no rank waits for another one.

    The sum of the losses float32 [] and of what the objective tells beside it, and what each example lost, by batch.
    """
    total, per_item = torch.zeros((), device=accelerator.device), []
    sums = torch.zeros(len(metrics), device=accelerator.device) if metrics else None
    for batch in batches:
        with accelerator.no_sync(model):
            losses: Losses = model(batch)
            phases.end("forward")
            with determinism.backward():
                accelerator.backward(losses.total * (accelerator.num_processes / weight))
            phases.end("backward")
        total += losses.total.detach()
        if sums is not None and losses.metrics is not None:
            sums += losses.metrics
        per_item.append(losses.per_item)
    return total, sums, tuple(per_item)


def _added(accelerator: Accelerator, total: Tensor, sums: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The sums over all ranks."""
    return accelerator.reduce(total, "sum"), None if sums is None else accelerator.reduce(sums, "sum")


def _draw(accelerator: Accelerator, seed: int, step: int) -> None:
    """Where several processes train: dropout of each step from a seed of its own, another one on each of them.

    A checkpoint, which the leader writes, holds the leader's generators only; the others could not go on from theirs.
    """
    if accelerator.num_processes > 1:
        name = f"{seed}/{step}/{accelerator.process_index}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]))


def _divide(weights: Iterable[nn.Parameter], by: float) -> None:
    for parameter in weights:
        if parameter.grad is not None:
            parameter.grad.div_(by)


@torch.no_grad()
def held_loss(objective: nn.Module, batches: Iterable[Batch], device: torch.device) -> float:
    """Sum of the losses of batches, without dropout."""
    was, total = objective.training, 0.0
    objective.eval()
    for batch in batches:
        losses: Losses = objective(batch.to(device))
        total += float(losses.total)
    objective.train(was)
    return total
