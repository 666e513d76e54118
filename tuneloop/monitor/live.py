"""A run as it goes, read from its folder: what `tuneloop watch` draws. The run may be in this process or another."""

from __future__ import annotations

import math
import shutil
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from tuneloop.base.errors import RecipeError, RunError
from tuneloop.base.files import KEEP_FREE
from tuneloop.base.language import t
from tuneloop.monitor.notices import Notice, notices, still_on
from tuneloop.recipe.recipe import read_recipe
from tuneloop.recipe.watch import MemoryRule
from tuneloop.recipe.yaml import loads
from tuneloop.runs.journal import Tail
from tuneloop.runs.lock import is_held
from tuneloop.runs.run import Run

Status = Literal["beginning", "running", "finished", "stopped", "paused", "failed", "gone"]
CLOCK = (
    "time", "seconds", "tokens_per_second", "memory_gb", "process_gb", "memory_total_gb", "memory_free_gb", "device_gb",
    "device_total_gb", "cpu", "gpu", "temperature", "disk_free_gb",
)  # fmt: skip
"""What the clock of a training line may hold, beside the phases of a step."""
ENDED: frozenset[Status] = frozenset({"finished", "stopped", "paused", "failed", "gone"})
LIVES = frozenset({"started", "resumed", "stopped", "paused", "failed", "finished", "killed"})
PATIENCE = 60.0
"""Seconds for which a folder may rest while nobody holds its lock: a run that goes on by itself loads its model."""
LINES_KEPT = 200
"""Training lines that are kept whole; of those before their losses."""
SOURCE_LINES = 10
"""Training lines over which the loss of a source is averaged: not every step has rows of every one."""


@dataclass(frozen=True, slots=True)
class TrainingFigures:
    """A training line of metrics.jsonl; None is what it does not hold.

    loss, smooth: nats a label token (or an item); seconds: of one step; phases: seconds of one step by part; sizes in
    GB (1e9); cpu, gpu: 0 to 1; temperature: Celsius; padding: share of what a pass computes, 0 to 1.
    """

    step: int
    loss: float | None
    smooth: float | None
    grad_norm: float | None
    grad_groups: Mapping[str, float]
    learning_rate: float | None
    sources: Mapping[str, float]
    padding: float | None
    time: float | None
    seconds: float | None
    tokens_per_second: float | None
    phases: Mapping[str, float]
    memory_gb: float | None
    process_gb: float | None
    memory_total_gb: float | None
    memory_free_gb: float | None
    device_gb: float | None
    device_total_gb: float | None
    cpu: float | None
    gpu: float | None
    temperature: float | None
    disk_free_gb: float | None


@dataclass(frozen=True, slots=True)
class HeldFigures:
    """A held-out line: the mean loss, its standard error over rows, and the rows; None is what it does not hold."""

    step: int
    loss: float
    error: float | None
    rows: int | None


@dataclass(frozen=True, slots=True)
class LiveRun:
    """What is known of a run now. `total`: optimizer steps in all, 0 unknown; `seconds_left`: until its last step."""

    name: str
    model: str
    method: str
    status: Status
    total: int
    step: int
    seconds_left: float | None
    latest: TrainingFigures | None
    losses: tuple[tuple[int, float], ...]
    smooth: tuple[tuple[int, float], ...]
    held: tuple[HeldFigures, ...]
    sources: Mapping[str, float]
    notices: tuple[Notice, ...]
    has_checkpoint: bool
    limits: tuple[float, float]
    """Shares of the memory from which to watch, and that are bad."""

    @property
    def ended(self) -> bool:
        return self.status in ENDED


def figures_of(line: Mapping[str, Any]) -> TrainingFigures | HeldFigures | None:
    """What a line of metrics.jsonl holds; None where it is neither a training nor a held-out line."""
    step = line.get("step")
    if not isinstance(step, int):
        return None
    held = _number(line, "eval_loss")
    if held is not None:
        rows = line.get("eval_rows")
        return HeldFigures(step, held, _number(line, "eval_error"), rows if isinstance(rows, int) else None)
    if "loss" not in line:
        return None
    clock = line.get("clock") if isinstance(line.get("clock"), Mapping) else {}
    timed = {name: _number(clock or {}, name) for name in CLOCK}
    return TrainingFigures(
        step=step,
        loss=_number(line, "loss"),
        smooth=_number(line, "smooth"),
        grad_norm=_number(line, "grad_norm"),
        grad_groups=_numbers(line.get("grad_groups")),
        learning_rate=_number(line, "learning_rate"),
        sources=_numbers(line.get("sources")),
        padding=_number(line, "padding"),
        phases=_numbers((clock or {}).get("phases")),
        **timed,
    )


def _number(fields: Mapping[str, Any], name: str) -> float | None:
    number = fields.get(name)
    return float(number) if isinstance(number, int | float) and not isinstance(number, bool) else None


def _numbers(fields: Any) -> dict[str, float]:
    if not isinstance(fields, Mapping):
        return {}
    return {str(name): n for name in fields if (n := _number(fields, name)) is not None}


def group_word(group: str) -> str:
    """A group of layers in the reader's language.

    >>> group_word("layers 0-9"), group_word("head")
    ('layers 0-9', 'head')
    """
    kind, _, which = group.partition(" ")
    named = {"embeddings": t("embeddings"), "head": t("head"), "rest": t("rest")}
    if kind in ("layer", "layers") and which:
        return t("layer {n}", n=which) if kind == "layer" else t("layers {n}", n=which)
    return named.get(group, group)


class Follower:
    """Follows a run's folder: `look` reads what is new in it, `state` says what is known by then.

    `patience`: seconds for which the folder may rest while nobody holds its lock before the run counts as gone.
    """

    def __init__(self, run: Run, *, patience: float = PATIENCE) -> None:
        self.run, self.patience = run, patience
        self.metrics_tail, self.events_tail = Tail(run.metrics), Tail(run.events)
        self.training: deque[TrainingFigures] = deque(maxlen=LINES_KEPT)
        self.losses: list[tuple[int, float]] = []
        self.smooth: list[tuple[int, float]] = []
        self.held: list[HeldFigures] = []
        self.events: list[dict[str, Any]] = []
        self.notices: tuple[Notice, ...] = ()
        self.held_lock = self.left_lock = False
        self.model, self.method, self.limits = _settings(run)
        self.planned = _planned(run)

    def look(self) -> tuple[tuple[HeldFigures, ...], TrainingFigures | None, tuple[dict[str, Any], ...]]:
        """Read what came since the last look: measurements, the newest training line if there is a new one, and events.
        Of a run that was taken up again, whose lines after its checkpoint come once more, only what is new."""
        lock = self.run.path / ".lock"
        self.held_lock, self.left_lock = is_held(lock), lock.exists()  # first: what was written before is read now
        known, before = set(self.held), self.training[-1] if self.training else None
        for piece in self.metrics_tail.pieces():
            if piece.rewound:
                for lines in (self.training, self.losses, self.smooth, self.held):
                    lines.clear()
            for line in piece.lines:
                self._add(figures_of(line))
        events = self.events_tail.read()
        if events.rewound:
            self.events.clear()
        self.events += events.lines
        if events.lines or events.rewound:
            self.notices = tuple(notices(self.events))
        newest = self.training[-1] if self.training else None
        return tuple(f for f in self.held if f not in known), None if newest == before else newest, events.lines

    def _add(self, figures: TrainingFigures | HeldFigures | None) -> None:
        if isinstance(figures, HeldFigures):
            self.held.append(figures)
        elif figures is not None:
            self.training.append(figures)
            for curve, y in ((self.losses, figures.loss), (self.smooth, figures.smooth)):
                if y is not None and math.isfinite(y):
                    curve.append((figures.step, y))

    def state(self, now: float) -> LiveRun:
        """What is known at `now`, in seconds since 1970."""
        totals = (e["total"] for e in reversed(self.events) if type(e.get("total")) is int and e["total"] > 0)
        total = next(totals, self.planned)
        latest = self.training[-1] if self.training else None
        ended: dict[str, Any] = next((e for e in reversed(self.events) if e.get("event") == "finished"), {})
        steps = (latest.step if latest else 0, self.held[-1].step if self.held else 0, ended.get("step"))
        step = max(step for step in steps if type(step) is int)
        status = self._status(now)
        seconds = self._step_seconds() if status not in ENDED and step < total else None
        return LiveRun(
            name=self.run.name,
            model=self.model,
            method=self.method,
            status=status,
            total=total,
            step=step,
            seconds_left=None if seconds is None else seconds * (total - step),
            latest=latest,
            losses=tuple(self.losses),
            smooth=tuple(self.smooth),
            held=tuple(self.held),
            sources=self._sources(),
            notices=self.notices,
            has_checkpoint=any(self.run.checkpoints.glob("step-*")),
            limits=self.limits,
        )

    def _status(self, now: float) -> Status:
        lives = [name for e in self.events if (name := str(e.get("event"))) in LIVES]
        last = lives[-1] if lives else ""
        if "finished" in lives:
            return "finished"
        if not self.held_lock and last in ("stopped", "paused", "failed"):
            return cast("Status", last)
        quiet = now - self._touched() > self.patience
        if self.held_lock or not (quiet or (last and not self.left_lock)):
            return "running" if self.training and last in ("started", "resumed") else "beginning"
        if self._disk_is_full():
            return "paused"
        return "gone" if quiet or self.left_lock else "failed"

    def _disk_is_full(self) -> bool:
        on = still_on(self.notices)
        return (
            any(n.name == "disk" and n.tone == "bad" for n in on) or shutil.disk_usage(self.run.path).free < KEEP_FREE
        )

    def _touched(self) -> float:
        """When something was last written into the folder, in seconds since 1970."""
        files = (self.run.recipe, self.run.metrics, self.run.events, self.run.path, self.run.checkpoints)
        return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)

    def _step_seconds(self) -> float | None:
        """Seconds of a step on average since training began or went on, measurements and checkpoints included, over the
        lines that are kept; those of the last step where the machine's clock was set back meanwhile."""
        begun = [e.get("time") for e in self.events if e.get("event") in ("started", "resumed")]
        start = begun[-1] if begun and isinstance(begun[-1], int | float) else 0.0
        timed = [(f.step, f.time) for f in self.training if f.time is not None and f.time >= start]
        if len(timed) > 1 and timed[-1][0] > timed[0][0]:
            mean = (timed[-1][1] - timed[0][1]) / (timed[-1][0] - timed[0][0])
            if 0 < mean < math.inf:
                return mean
        last = self.training[-1].seconds if self.training else None
        return last if last is not None and 0 <= last < math.inf else None

    def _sources(self) -> dict[str, float]:
        """Data file -> its mean loss over the last lines that have it."""
        recent: dict[str, deque[float]] = {}
        for one in self.training:
            for name, loss in one.sources.items():
                recent.setdefault(name, deque(maxlen=SOURCE_LINES)).append(loss)
        return {name: sum(losses) / len(losses) for name, losses in sorted(recent.items())}


def _settings(run: Run) -> tuple[str, str, tuple[float, float]]:
    """The model's name, the method, and the shares of the memory from which to watch and that are bad (infinite where
    that rule is off). A recipe that another version has written may be read in parts only."""
    try:
        recipe, _ = read_recipe(run.recipe)
    except RecipeError:
        if not run.recipe.is_file():
            raise
        return *_names(run.recipe), (MemoryRule().watch, MemoryRule().bad)
    memory = recipe.watch.rules.memory
    watched = recipe.watch.enabled and memory.enabled
    limits = (memory.watch, memory.bad) if watched else (math.inf, math.inf)
    return recipe.model.name, str(recipe.train.method), limits


def _names(recipe: Path) -> tuple[str, str]:
    try:
        raw = loads(recipe.read_text(encoding="utf-8", errors="replace"), str(recipe))
    except RecipeError:
        return "", ""
    sections = [raw.get(name) if isinstance(raw, dict) else None for name in ("model", "train")]
    pairs = zip(sections, ("name", "method"), strict=True)
    name, method = (str(part.get(key, "")) if isinstance(part, dict) else "" for part, key in pairs)
    return name, method


def _planned(run: Run) -> int:
    """The steps that were foreseen, 0 where no plan says so."""
    try:
        counts = run.read("plan.json").get("data")
    except RunError:
        return 0
    steps = counts.get("steps") if isinstance(counts, Mapping) else None
    return steps if type(steps) is int and steps > 0 else 0
