"""What watches the held-out loss: when to stop early, and which state was the best.

A guard has no memory of its own: it reads the measurements in metrics.jsonl, which a resumed run has rewound to its
checkpoint. So a run that was stopped and taken up decides what it would have decided.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneloop.base.errors import RunError
from tuneloop.base.language import t
from tuneloop.model import checkpoint
from tuneloop.monitor.remedies import Remedy, remedies
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
    checkpoints: Path = Path()
    may_end: bool = False
    """Whether a remedy may end the run at its best checkpoint, which then must stay."""
    ended: tuple[int, float] | None = field(default=None, init=False)
    """The step whose state is the result, and its held-out loss, once a remedy has ended the run."""
    best_loss: float = field(default=math.inf, init=False)
    best_step: int = field(default=0, init=False)
    waited: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for remedy in remedies(self.events.lines()):
            if remedy.remedy == "stop":
                self.end(remedy)
        for line in self.metrics.lines():
            if _is_measured(line):
                self._count(line["step"], line["eval_loss"])

    def end(self, remedy: Remedy) -> None:
        """A remedy has ended the run at its best checkpoint."""
        self.ended = int(remedy.facts["best"]), float(remedy.facts["loss"])

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
        return self.ended is not None or (self.patience is not None and self.waited >= self.patience)

    @property
    def spare(self) -> int | None:
        """The step whose checkpoint must stay: that of the best state, if that is to be kept; where a remedy may need
        it, too, if it was saved."""
        saved = self.may_end and (self.checkpoints / f"step-{self.best_step}").is_dir()
        return self.best_step if self.best_step and (self.keeps_best or saved) else None

    def measurements(self) -> list[tuple[int, float]]:
        """Step and held-out loss of each measurement."""
        return [(int(m["step"]), float(m["eval_loss"])) for m in self.metrics.lines() if _is_measured(m)]

    def best_saved(self) -> tuple[int, float] | None:
        """Of the checkpoints that were measured, the best: its step and held-out loss; None where there is none."""
        there = [(step, loss) for step, loss in self.measurements() if (self.checkpoints / f"step-{step}").is_dir()]
        return min(there, key=lambda one: one[1], default=None)

    def saves(self, step: int) -> bool:
        """Whether the state after `step` must be saved whatever the recipe says of saving: it is the best so far."""
        return self.keeps_best and self.spare == step

    def best(self, checkpoints: Path, last: int) -> Path | None:
        """The checkpoint that holds the result; None where that is the state after the `last` step.

        Raises TL-RUN-BEST when it is gone or damaged.
        """
        step, loss = self.ended or (self.spare if self.keeps_best else None, self.best_loss)
        if step is None or step == last:
            return None
        path = checkpoints / f"step-{step}"
        if not checkpoint.verified(path):
            raise RunError("TL-RUN-BEST", where=str(path), step=step)
        self.events.event("best", step=step, eval_loss=loss)
        self.say(t("the result is the state after step {step}, held-out loss {loss}", step=step, loss=f"{loss:.4f}"))
        return path


def _is_measured(line: dict[str, Any]) -> bool:
    """Whether a line of metrics holds a held-out loss that is a number."""
    return isinstance(line.get("eval_loss"), int | float)


def require_held_out(train: TrainPart, held: int) -> None:
    """Raises TL-RUN-NO-HELD-OUT when a guard is asked for and no held-out row can be measured."""
    stops = [key for key in ("early_stopping", "keep_best") if getattr(train, key)]
    if stops and not held:
        raise RunError("TL-RUN-NO-HELD-OUT", where=f"train.{stops[0]}", key=f"train.{stops[0]}")
