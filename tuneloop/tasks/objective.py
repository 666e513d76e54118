"""An objective: a model and what is lost with it on a batch, in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from tuneloop.data.batches.pack import Batch


@dataclass(frozen=True, slots=True)
class Losses:
    """What a batch of n examples loses.

    total float32 []: the sum, which is differentiated. per_item float32 [n], detached: each example's share, in the
    batch's order, empty in the pass of an idle rank; `Batch.members` tell the rows they are of. metrics float32
    [len(Objective.metrics)], detached: sums over the examples; None outside training.
    """

    total: Tensor
    per_item: Tensor
    metrics: Tensor | None = None


class Objective(nn.Module):
    """The module that accelerate wraps: `model` and a loss around it, with whatever a method wrapped around the model.

    `metrics` names what is told beside the loss. A batch without labels (an idle rank's) loses nothing, but its graph
    reaches each trained weight.
    """

    metrics: tuple[str, ...] = ()

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training  # else putting this back as it was would switch the model's dropout on

    @property
    def chance(self) -> float | None:
        """What an even guess loses on average, in nats; None of a loss that is no cross entropy."""
        return None

    def forward(self, batch: Batch) -> Losses:
        raise NotImplementedError

    def before_step(self, batches: Sequence[Batch], reduce: Callable[[Tensor], Tensor]) -> None:
        """Look at a step's batches before they are trained on; `reduce` adds up over ranks. Does nothing by default."""
