"""What looks out for trouble while a run trains, and tells it: on the screen, in events.jsonl and to who listens."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneloop.methods.table import parameters
from tuneloop.model.checkpoint import State
from tuneloop.monitor.alerts import Alert, shown
from tuneloop.monitor.history import History, RunLimits
from tuneloop.monitor.standing import Standings
from tuneloop.recipe.watch import WatchPart
from tuneloop.runs.journal import Journal, Tail
from tuneloop.training.state import TrainState
from tuneloop.training.step_result import StepResult


@dataclass(slots=True)
class Watcher:
    """Judges each line of metrics.jsonl by the rules, after the step that wrote it.

    It reads the lines from the file, as a resumed run does, which has rewound it to its checkpoint: what stands there
    when it is made was judged before and is judged again in silence. So a run that was taken up tells what it would
    have told. `held` is held.jsonl, of which the rules pair rows. `listeners` are called with each alert.
    """

    settings: WatchPart
    metrics: Tail
    held: Tail
    events: Journal
    say: Callable[[str], None]
    limits: RunLimits = field(default_factory=RunLimits)
    listeners: Sequence[Callable[[Alert], None]] = ()
    standings: Standings = field(init=False)
    replayed: list[Alert] = field(default_factory=list, init=False)
    """Alerts of lines that stood there when it was made."""
    loud: set[str] = field(default_factory=set, init=False)
    """Rules whose alerts of now were shown."""
    rows: deque[dict[str, Any]] = field(default_factory=deque, init=False)

    def __post_init__(self) -> None:
        self.standings = Standings(self.settings.rules, History(self.limits))
        self.replayed = self._alerts() if self.settings.enabled else []

    @classmethod
    def of(
        cls, setup: TrainState, say: Callable[[str], None], listeners: Sequence[Callable[[Alert], None]] = ()
    ) -> Watcher:
        """The watcher of a session's run. A checkpoint holds the trained weights and two moments of each; beside the
        next one there must be room for the result."""
        path = setup.run.path
        bytes_needed = 4 * parameters(setup.model)[1] * (3 + 1)
        limits = RunLimits(setup.total, bytes_needed / 1e9, shutil.disk_usage(path).total / 1e9, setup.objective.chance)
        metrics, held = Tail(setup.run.metrics), Tail(path / "held.jsonl")
        return cls(setup.recipe.watch, metrics, held, setup.events, say, limits, listeners)

    def on_step(self, state: State, outcome: StepResult) -> None:
        self._judge()

    def on_end(self, state: State) -> None:
        self._judge()

    def give(self, alert: Alert) -> None:
        """Write an alert down, show it and hand it on: one of the rules, or one of those that look at single rows.

        A note asks for nothing, so it is not put on the screen, and neither is its end.
        """
        self.events.event("alert", **alert.as_event())
        if alert.level in ("watch", "bad"):
            self.loud.add(alert.rule)
        if alert.rule in self.loud and alert.level != "note":
            for line in shown(alert):
                self.say(line)
        if alert.level == "good":
            self.loud.discard(alert.rule)
        for listener in self.listeners:
            listener(alert)

    def _judge(self) -> None:
        if self.settings.enabled:
            for alert in self._alerts():
                self.give(alert)

    def _alerts(self) -> list[Alert]:
        """What the lines that metrics.jsonl has gained give; held-out rows come just before their mean."""
        lines = self.metrics.read().lines
        if any("eval_loss" in line for line in lines):
            self.rows.extend(self.held.read().lines)
        alerts = []
        for line in lines:
            while self.rows and self.rows[0]["step"] <= line["step"]:
                self.standings.history.add_rows(self.rows.popleft())
            alerts += self.standings.add(line)
        return alerts
