"""Which alerts of a run stand: each is given once when it begins or becomes worse, and once when it is over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuneloop.monitor.alerts import LEVELS, Alert
from tuneloop.monitor.detection import Detection
from tuneloop.monitor.history import WINDOW, History
from tuneloop.monitor.rules import RULES
from tuneloop.recipe.watch import Level, RulesPart

RISE = 2
"""For so many windows an alert is the beginning of a worse one; after that, the worse one has its own."""
CALM = 5
"""Training lines without a detection after which an alert is over: one good line among bad ones ends nothing."""


@dataclass(slots=True)
class _Standing:
    """An alert that stands, as it was given last; `calm` lines have passed without a detection."""

    level: Level
    since: int
    facts: dict[str, Any]
    calm: int = 0


@dataclass(slots=True)
class Standings:
    """The rules over a run's history. What they give is a function of the lines, so a resumed run gives the same."""

    rules: RulesPart
    history: History = field(default_factory=History)
    standing: dict[str, _Standing] = field(default_factory=dict)

    def add(self, line: Mapping[str, Any]) -> list[Alert]:
        """Take one line of metrics.jsonl. What has begun, become worse or ended with it, in the order of RULES."""
        before = self.history.count
        self.history.add(line)
        trained = self.history.count > before
        given = [
            self._judged(rule, find(self.history, self.rules), trained=trained)
            for rule, find in RULES.items()
            if getattr(self.rules, rule).enabled
        ]
        return [alert for alert in given if alert is not None]

    def _judged(self, rule: str, detection: Detection | None, *, trained: bool) -> Alert | None:
        now, step = self.standing.get(rule), self.history.step
        if detection is None:
            if now is None:
                return None
            now.calm += trained
            if now.calm < CALM:
                return None
            del self.standing[rule]
            self.history.since.pop(rule, None)
            return Alert(rule, "good", step, now.since, now.facts)
        if now is not None:
            now.calm = 0
            if LEVELS.index(detection.level) <= LEVELS.index(now.level):
                return None
        since = detection.since
        if now is not None and step - now.since <= RISE * WINDOW:
            since = min(now.since, since)
        facts = {name: _as_json(fact) for name, fact in detection.facts.items()}
        self.standing[rule] = _Standing(detection.level, since, facts)
        self.history.since.setdefault(rule, since)
        return Alert(rule, detection.level, step, since, facts)


def _as_json(fact: Any) -> Any:
    """A fact as JSON has it everywhere: no NaN, and no digits that say nothing."""
    if not isinstance(fact, float):
        return fact
    return float(f"{fact:.6g}") if math.isfinite(fact) else None
