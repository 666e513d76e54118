"""The training loop, on one screen. It takes its parts as arguments and knows no recipe, file or screen."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tuneloop.base.errors import RunError
from tuneloop.data.batches.loader import Step
from tuneloop.data.batches.pack import Packed
from tuneloop.model import determinism
from tuneloop.model.checkpoint import State


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step was: `loss` the mean over what the step counts, label tokens mostly; `grad_norm` before clipping."""

    step: Step
    loss: float
    grad_norm: float
    learning_rate: float
    told: dict[str, float] = field(default_factory=dict)
    """What the objective tells beside its loss, such as the accuracy on preference pairs: means, as the loss is."""


class Callback(Protocol):
    """Something that watches the loop. It may read and write files; it never changes the model."""

    def on_step(self, state: State, result: StepResult) -> None: ...

    def on_end(self, state: State) -> None: ...


def to_device(micro: Packed, device: torch.device) -> dict[str, Any]:
    """The row's tensors on the device; the segments stay numbers."""

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: moved(v) for k, v in value.items()}
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

    return {k: moved(v) for k, v in micro.items()}


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
    """Run the steps. `model` is the wrapped objective: its forward returns the sum of the losses of a row.

    The loss of a step is that sum over all micro-batches and ranks, divided by the step's weight: by its label tokens,
    or by the texts or pairs where these are counted. Gradients are averaged over ranks, so each rank scales its share
    by their number. Ends early when `stop()` is true.
    `late`, for float16, divides by the weight after the backward pass, in the trained weights' float32: the gradient of
    a mean over thousands of tokens is below what float16 can tell from zero (6e-8), that of the sum is not.
    `seed` is what several processes draw from (see `_draw`). One process goes on with the generator that it finds.
    Raises TL-RUN-NAN when the loss or its gradient is no number; the weights are those of the last good step.
    """
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    inner = accelerator.unwrap_model(model)
    for step in steps:
        _draw(accelerator, seed, state.step)
        _begin(accelerator, inner, step)
        total = torch.zeros((), device=accelerator.device)
        for micro in step.micros:
            loss = model(**to_device(micro, accelerator.device))
            with determinism.backward():
                accelerator.backward(loss * (accelerator.num_processes / (1 if late else step.weight)))
            total += loss.detach()
        if late:
            _divide(weights, step.weight)
        mean = float(accelerator.reduce(total, "sum")) / step.weight
        norm = float(accelerator.clip_grad_norm_(weights, max_grad_norm or math.inf))
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise RunError("TL-RUN-NAN", where=f"step {state.step + 1}", loss=f"{mean:.4g}", norm=f"{norm:.4g}")
        told = _told(accelerator, inner, step)
        rate = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        state.step += 1
        for callback in callbacks:
            callback.on_step(state, StepResult(step, mean, norm, rate, told))
        if stop():
            break
    for callback in callbacks:
        callback.on_end(state)
    return state


def _draw(accelerator: Accelerator, seed: int, step: int) -> None:
    """Where several processes train: dropout of each step from a seed of its own, another one on each of them.

    A checkpoint, which the leader writes, holds the leader's generators only; the others could not go on from theirs.
    """
    if accelerator.num_processes > 1:
        name = f"{seed}/{step}/{accelerator.process_index}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]))


def _begin(accelerator: Accelerator, objective: nn.Module, step: Step) -> None:
    """Let an objective see a whole step before its passes, if it wants to (KTO measures its distance there)."""
    if before := getattr(objective, "before_step", None):
        micros = [to_device(micro, accelerator.device) for micro in step.micros]
        before(micros, lambda sums: accelerator.reduce(sums, "sum"))


def _told(accelerator: Accelerator, objective: nn.Module, step: Step) -> dict[str, float]:
    """Means of what an objective told beside its loss (`told_names`, their sums in `told`), over all ranks."""
    names: tuple[str, ...] = getattr(objective, "told_names", ())
    if not names:
        return {}
    sums: Tensor = objective.told  # type: ignore[assignment]
    means = (accelerator.reduce(sums.to(accelerator.device), "sum") / step.weight).tolist()
    sums.zero_()
    return dict(zip(names, means, strict=True))


def _divide(weights: Iterable[nn.Parameter], by: float) -> None:
    for parameter in weights:
        if parameter.grad is not None:
            parameter.grad.div_(by)


@torch.no_grad()
def held_loss(model: nn.Module, rows: Iterable[Packed], device: torch.device) -> float:
    """Sum of the losses of packed rows, without dropout."""
    was, total = model.training, 0.0
    model.eval()
    for row in rows:
        total += float(model(**to_device(row, device)))
    model.train(was)
    return total
