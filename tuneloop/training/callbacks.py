"""What watches the loop: metrics on disk, checkpoints, the held-out loss, progress on the screen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from tuneloop.base.duration import about
from tuneloop.base.language import t
from tuneloop.model.checkpoint import State
from tuneloop.monitor.machine import Machine
from tuneloop.monitor.meters import Meter
from tuneloop.monitor.smoothing import Smooth
from tuneloop.recipe.schema import Strategy
from tuneloop.runs.journal import Journal
from tuneloop.training.held_rows import HeldLosses
from tuneloop.training.row_sources import RowSources
from tuneloop.training.step_result import StepResult

Listener = Callable[[dict[str, Any]], None]
"""Hears each line as it was written."""

BAR_INTERVAL = 0.1
"""Seconds between two readings of a step's numbers for the bar on a terminal."""


@dataclass(frozen=True, slots=True)
class Due:
    """When something is done: every `every` steps, at the end of each epoch, or not; and at the last step if `last`."""

    strategy: Strategy
    every: int
    steps_per_epoch: int
    total: int
    last: bool = True

    def __call__(self, step: int) -> bool:
        """Whether it is due after optimizer step `step`, counted from 1.

        >>> [k for k in range(1, 8) if Due("epoch", 1, 3, 7)(k)]
        [3, 6, 7]
        """
        if step >= self.total:
            return self.last
        if self.strategy == "steps":
            return step % self.every == 0
        return self.strategy == "epoch" and step % self.steps_per_epoch == 0


@dataclass(slots=True)
class Metrics:
    """Writes a training line when due.

    The clock is read after each step; with `late`, on a card that runs behind, when a line is due and its numbers have
    been waited for, and is then of the mean step since the last line.
    """

    journal: Journal
    meter: Meter
    due: Due
    steps_per_epoch: int
    late: bool = False
    sources: RowSources | None = None
    machine: Machine | None = None
    listeners: Sequence[Listener] = ()
    tokens: int = field(default=0, init=False)
    steps: int = field(default=0, init=False)
    smooth: Smooth = field(default_factory=Smooth, init=False)

    def __post_init__(self) -> None:
        for line in self.journal.lines():  # a resumed run goes on smoothing as if it had not stopped
            if isinstance(line.get("loss"), int | float):
                self.smooth.add(line["loss"])

    def on_step(self, state: State, outcome: StepResult) -> None:
        step, due = outcome.step, self.due(state.step)
        self.tokens, self.steps = self.tokens + step.tokens, self.steps + 1
        if self.late and not due:
            return
        figures = outcome.read() if due else None
        clock: dict[str, Any] = self.meter.read(self.tokens, self.steps)
        self.tokens = self.steps = 0
        if figures is None:
            return
        if outcome.phases is not None:
            clock["phases"] = outcome.phases.read()
        if self.machine is not None:
            clock |= self.machine.read()
        sources = self.sources.means(step.batches, outcome.per_item) if self.sources is not None else {}
        line = {
            "step": state.step,
            "epoch": round(state.step / self.steps_per_epoch, 4),
            "loss": figures.loss,
            "smooth": self.smooth.add(figures.loss),
            "grad_norm": figures.grad_norm,
            **({"grad_groups": figures.grad_groups} if figures.grad_groups else {}),
            "learning_rate": figures.learning_rate,
            **figures.metrics,
            **({"sources": sources} if sources else {}),
            "samples": step.samples,
            "batch": step.digest,
            "tokens": step.tokens,
            "label_tokens": step.label_tokens,
            "padding": round(step.idle / (step.tokens + step.idle), 4) if step.idle else 0,
            "clock": clock,
        }
        self.journal.write(line)
        for tell in self.listeners:
            tell(line)

    def on_end(self, state: State) -> None:
        pass


@dataclass(slots=True)
class HeldOut:
    """Measures the held-out loss when due and writes it as a line of its own; then tells those who want to know.

    `measured` hear step and loss, `listeners` the whole line. `rows` is held.jsonl, where the rows' losses go.
    """

    journal: Journal
    meter: Meter
    due: Due
    steps_per_epoch: int
    measure: Callable[[], HeldLosses]
    say: Callable[[str], None]
    measured: Sequence[Callable[[int, float], None]] = ()
    rows: Journal | None = None
    listeners: Sequence[Listener] = ()

    def on_step(self, state: State, outcome: StepResult) -> None:
        if not self.due(state.step):
            return
        outcome.read()  # a step that was none is told before its weights are measured
        began = time.perf_counter()
        held = self.measure()
        if held.weight:
            self._write(state.step, held, round(time.perf_counter() - began, 3))
        self.meter.pause()

    def _write(self, step: int, held: HeldLosses, seconds: float) -> None:
        loss, error = held.total / held.weight, held.error
        line = {
            "step": step,
            "epoch": round(step / self.steps_per_epoch, 4),
            "eval_loss": loss,
            **({} if error is None else {"eval_error": error}),
            "eval_rows": len(held.losses),
            "clock": {"seconds": seconds},
        }
        if self.rows is not None:
            self.rows.write({"step": step, **held.some()})
        self.journal.write(line)
        self.say(t("step {step}: held-out loss {loss}", step=step, loss=f"{loss:.4f}"))
        for tell in self.measured:
            tell(step, loss)
        for listener in self.listeners:
            listener(line)

    def on_end(self, state: State) -> None:
        pass


@dataclass(slots=True)
class Saver:
    """Writes a checkpoint when due, and where the loop ends early; none of a state that is to be given up."""

    save: Callable[[State], Path]
    journal: Journal
    meter: Meter
    due: Callable[[int], bool]
    is_given_up: Callable[[], bool] = lambda: False
    saved: int = -1

    def on_step(self, state: State, outcome: StepResult) -> None:
        if self.due(state.step) and not self.is_given_up():
            outcome.read()
            self._save(state)

    def on_end(self, state: State) -> None:
        if self.saved != state.step and state.step and not self.is_given_up():
            self._save(state)

    def _save(self, state: State) -> None:
        path = self.save(state)
        self.saved = state.step
        self.journal.event("checkpoint", step=state.step, path=path.name)
        self.meter.pause()


class Screen:
    """A bar on a terminal; elsewhere a plain line now and then, for steps only whose metrics are logged as well."""

    def __init__(
        self,
        total: int,
        meter: Meter,
        file: TextIO,
        *,
        first: int = 0,
        interval: float = 10.0,
        due: Callable[[int], bool] = lambda step: True,
    ) -> None:
        self.total, self.meter, self.interval, self.due = total, meter, interval, due
        self.console = Console(file=file, highlight=False, soft_wrap=True)
        self.last = -math.inf  # due at once; the clock may count from the start of the machine
        self.began, self.first = time.perf_counter(), first
        self.bar: Progress | None = None
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn(t("training")),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task("", total=total, completed=first, numbers="")
            self.bar.start()

    def begin(self, first: int) -> None:
        """Training begins now, after optimizer step `first`."""
        self.began, self.first = time.perf_counter(), first
        if self.bar is not None:
            self.bar.update(self.task, completed=first)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def on_step(self, state: State, outcome: StepResult) -> None:
        now, last = time.perf_counter(), state.step == self.total
        interval = BAR_INTERVAL if self.bar is not None else self.interval
        if (not last and now - self.last < interval) or (self.bar is None and not self.due(state.step)):
            if self.bar is not None:
                self.bar.update(self.task, completed=state.step)
            return
        figures = outcome.read()
        speed = self.meter.last_tokens / max(1e-9, self.meter.last_seconds)
        numbers = t(
            "loss {loss}  grad {grad}  {speed} tok/s  {memory} GB",
            loss=f"{figures.loss:.3f}",
            grad=f"{figures.grad_norm:.2f}",
            speed=f"{speed:.0f}",
            memory=f"{self.meter.last_gb:.1f}",
        )
        self.last = now
        if self.bar is not None:
            self.bar.update(self.task, completed=state.step, numbers=numbers)
            return
        done = state.step - self.first
        left = (self.last - self.began) / max(1, done) * (self.total - state.step)
        self.say(
            t(
                "step {step}/{total}  {numbers}  {left} left",
                step=state.step,
                total=self.total,
                numbers=numbers,
                left=about(left),
            )
        )

    def on_end(self, state: State) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
