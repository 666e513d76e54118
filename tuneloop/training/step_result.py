"""What the loop hands to those who watch it: a step, and its numbers when somebody reads them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tuneloop.data.batches.loader import Step
from tuneloop.monitor.gradients import GradientNorms
from tuneloop.monitor.phases import Phases
from tuneloop.training.finite import Finite


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step was. Its numbers stay on the device until somebody reads them: a card then need not be waited for.

    total float32 []: the sum of the losses, which `step.weight` makes a mean; norm float32 []: of the gradient, before
    clipping; sums float32 [len(names)]: of what the objective tells beside its loss. per_item: of each of the step's
    batches on this rank what its examples lost, float32 [examples]; `Batch.members` tell which they are. groups: the
    gradient's norms by group of layers; phases: where the step's time went.
    """

    step: Step
    total: Tensor
    norm: Tensor
    learning_rate: float
    finite: Finite
    names: tuple[str, ...] = ()
    sums: Tensor | None = None
    per_item: tuple[Tensor, ...] = ()
    groups: GradientNorms | None = None
    phases: Phases | None = None

    def read(self) -> Figures:
        """The numbers. Raises TL-RUN-NAN where the loss or its gradient was no number in this step or before."""
        self.finite.require()
        means = [] if self.sums is None else (self.sums / self.step.weight).tolist()
        loss, groups = float(self.total) / self.step.weight, {} if self.groups is None else self.groups.read()
        return Figures(loss, float(self.norm), self.learning_rate, dict(zip(self.names, means, strict=True)), groups)


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers of a step: `loss` the mean over what the step counts, label tokens mostly; `grad_norm` before
    clipping, `grad_groups` that of each group of layers; `metrics` what the objective tells beside its loss, such as
    the accuracy on preference pairs: means."""

    loss: float
    grad_norm: float
    learning_rate: float
    metrics: dict[str, float]
    grad_groups: dict[str, float]
