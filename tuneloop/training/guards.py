"""What watches the held-out loss: when to stop early, and which state was the best.

A guard has no memory of its own: it reads the measurements in metrics.jsonl, which a resumed run has rewound to its
checkpoint. So a run that was stopped and taken up decides what it would have decided.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tuneloop.base.errors import RunError
from tuneloop.base.language import t
from tuneloop.model import checkpoint
from tuneloop.recipe.schema import TrainPart
from tuneloop.runs.journal import Journal


@dataclass(slots=True)
class Guard:
    """The best held-out loss so far, at which step, and how many measurements have passed without a better one."""

    patience: int | None
    keeps_best: bool
    metrics: Journal
    events: Journal
    say: Callable[[str], None]
    best_loss: float = field(default=math.inf, init=False)
    best_step: int = field(default=0, init=False)
    waited: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for line in self.metrics.lines():
            if isinstance(line.get("eval_loss"), int | float):
                self._count(line["step"], line["eval_loss"])

    def measured(self, step: int, loss: float) -> None:
        """A held-out loss was measured after `step`."""
        before = self.stops
        self._count(step, loss)
        if self.stops and not before:
            self.events.event("early_stop", step=step, best_step=self.best_step, best_loss=self.best_loss)
            self.say(
                t(
                    "step {step}: the held-out loss has not fallen since step {best}: stopping early",
                    step=step,
                    best=self.best_step,
                )
            )

    def _count(self, step: int, loss: float) -> None:
        if loss < self.best_loss:  # never true for what is no number
            self.best_loss, self.best_step, self.waited = loss, step, 0
        else:
            self.waited += 1

    @property
    def stops(self) -> bool:
        """Whether the run should end here: `patience` measurements in a row were no better than the best."""
        return self.patience is not None and self.waited >= self.patience

    @property
    def spare(self) -> int | None:
        """The step whose checkpoint must stay, if the best one is to be kept."""
        return self.best_step if self.keeps_best and self.best_step else None

    def saves(self, step: int) -> bool:
        """Whether the state after `step` must be saved whatever the recipe says of saving: it is the best so far."""
        return self.spare == step

    def best(self, checkpoints: Path, last: int) -> Path | None:
        """The checkpoint that holds the result; None where that is the state after the `last` step.

        Raises TL-RUN-BEST when it is gone or damaged.
        """
        if self.spare is None or self.spare == last:
            return None
        path = checkpoints / f"step-{self.spare}"
        if not checkpoint.verified(path):
            raise RunError("TL-RUN-BEST", where=str(path), step=self.spare)
        self.events.event("best", step=self.spare, eval_loss=self.best_loss)
        self.say(
            t(
                "the result is the state after step {step}, held-out loss {loss}",
                step=self.spare,
                loss=f"{self.best_loss:.4f}",
            )
        )
        return path


def require_held_out(train: TrainPart, held: int) -> None:
    """Raises TL-RUN-NO-HELD-OUT when a guard is asked for and no held-out row can be measured."""
    stops = [key for key in ("early_stopping", "keep_best") if getattr(train, key)]
    if stops and not held:
        raise RunError("TL-RUN-NO-HELD-OUT", where=f"train.{stops[0]}", key=f"train.{stops[0]}")
