"""Each checkpoint of a run measured on the held-out rows: which one is best, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.base.errors import RunError
from tuneloop.base.language import t
from tuneloop.data.version.find import dataset_of
from tuneloop.evaluation.intervals import Estimate, ratio
from tuneloop.evaluation.paired import Paired, RowScores, compare_rows
from tuneloop.model import checkpoint
from tuneloop.model.kernels.matmul import matmul_precision
from tuneloop.runs.run import Run, run_recipe
from tuneloop.training import distributed
from tuneloop.training.input import assemble
from tuneloop.training.packing import rows
from tuneloop.training.row_losses import row_losses
from tuneloop.training.state import TrainState, build


@dataclass(frozen=True, slots=True)
class CheckpointLoss:
    """A checkpoint's held-out loss, the training objective's own, and how far the last checkpoint is from it."""

    step: int
    loss: Estimate
    against_last: Paired | None
    """before: this one, after: the last; None for the last itself."""

    def as_dict(self) -> dict[str, Any]:
        against = None if self.against_last is None else self.against_last.as_dict()
        return {"step": self.step, "loss": self.loss.as_dict(), "against_last": against}


@dataclass(frozen=True, slots=True)
class Sweep:
    """The checkpoints of a run, oldest first, and the place of the one with the lowest loss (None of no figure)."""

    checkpoints: tuple[CheckpointLoss, ...]
    best: int | None

    @property
    def sentence(self) -> str:
        """Which one is best, and whether it can be told from the last."""
        if self.best is None:
            return t("No checkpoint has a held-out loss: nothing was held out, or it is not a number.")
        best = self.checkpoints[self.best]
        if best.against_last is None:
            return t("The last checkpoint (step {step}) has the lowest held-out loss.", step=best.step)
        facts = {"step": best.step, "last": self.checkpoints[-1].step}
        if best.against_last.separation == "worse":
            return t("Step {step} is the best: the last one (step {last}) is worse by more than chance.", **facts)
        return t(
            "Step {step} has the lowest held-out loss, but it cannot be told from the last one (step {last}).", **facts
        )

    def as_dict(self) -> dict[str, Any]:
        return {"checkpoints": [one.as_dict() for one in self.checkpoints], "best": self.best}


def sweep(run: Run, say: Callable[[str], None]) -> Sweep:
    """Measure the checkpoints that a run still has. The weights of each go into the model as training built it.

    Raises TL-RUN-NO-CHECKPOINT where there is none, and what loading the run raises.
    """
    paths = _checkpoints(run)
    if not paths:
        raise RunError("TL-RUN-NO-CHECKPOINT", where=str(run.checkpoints))
    recipe = run_recipe(run.path)
    device = distributed.world().device
    setup = build(run, assemble(recipe, dataset_of(run)), device)
    setup.objective.to(device)
    losses = []
    for number, path in enumerate(paths, 1):
        say(t("Measuring checkpoint {n} of {total}: {name}", n=number, total=len(paths), name=path.name))
        checkpoint.restore_weights(path, setup.objective)
        losses.append(_losses(setup) if len(setup.held) else np.zeros(0))
    return swept([_step(path) for path in paths], losses, setup.held.weights)


def _losses(setup: TrainState) -> NDArray[np.float64]:
    """The loss of each held-out example, in float32 as training measures it."""
    device = next(setup.objective.parameters()).device
    batches = rows(setup.held, setup.recipe.train.token_budget, packing=setup.batches.packing)
    with matmul_precision("float32"):
        return row_losses(setup.objective, batches, setup.held, device)[1]


def swept(steps: Sequence[int], losses: Sequence[NDArray[np.float64]], weights: NDArray[np.float64]) -> Sweep:
    """The sweep of checkpoints at `steps` from what each example lost in each of them, float64 [examples].

    >>> two = swept([4, 8], [np.array([2.0, 2.0]), np.array([4.0, 4.0])], np.array([1.0, 1.0]))
    >>> two.best, two.checkpoints[1].loss.estimate
    (0, 4.0)
    """
    out = []
    for step, lost in zip(steps, losses, strict=True):
        against = None
        if lost is not losses[-1] and len(weights):
            scored = [
                RowScores(str(k), "", {"loss": a / w}, {"loss": b / w}, float(w))
                for k, (a, b, w) in enumerate(zip(lost, losses[-1], weights, strict=True))
            ]
            against = next((p for p in compare_rows(scored) if p.metric == "loss"), None)
        finite = len(lost) and bool(np.isfinite(lost).all())
        loss = ratio(lost, weights) if finite else Estimate(note="not measured")
        out.append(CheckpointLoss(step, loss, against))
    known = [(one.loss.estimate, place) for place, one in enumerate(out) if one.loss.estimate is not None]
    return Sweep(tuple(out), min(known)[1] if known else None)


def _checkpoints(run: Run) -> list[Path]:
    """The whole checkpoints of a run, oldest first; a broken one is passed over."""
    folders = [p for p in run.checkpoints.glob("step-*") if p.name[5:].isdigit() and checkpoint.verified(p)]
    return sorted(folders, key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
