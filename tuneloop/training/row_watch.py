"""What each training row lost when it was trained on: written down for the whole run, and the extreme ones listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuneloop.base.files import write_atomic
from tuneloop.base.records import Record
from tuneloop.data.batches.examples import Examples
from tuneloop.data.version.dataset import Dataset
from tuneloop.model.checkpoint import State
from tuneloop.monitor.alerts import LEVELS, Alert
from tuneloop.monitor.row_losses import PASSES, SuspiciousRows, suspicious_rows
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run
from tuneloop.training.state import TrainState
from tuneloop.training.step_result import StepResult

ROWS_FILE, LIST_FILE = "rows.jsonl", "suspicious_rows.jsonl"
MOST = 50_000
"""Examples whose losses are noted, for PASSES passes: about 8 MB at most. Of more, so many at even distances."""
EVERY = 100
"""Steps whose losses may wait on the device: reading them waits for a card."""
EXAMPLES, WORDS = 10, 60
"""Rows that an alert itself names, and characters of a text that name a row without a label."""


@dataclass(slots=True)
class RowWatch:
    """Writes rows.jsonl, a line a step: rows (numbers of examples), losses (each by its weight: a mean over what it
    counts); and after each pass from the second on suspicious_rows.jsonl, with an alert where the list is new.

    Losses stay on the device until `due(step)`, which must be true wherever a checkpoint is written, for EVERY steps at
    most. The journal is rewound to a checkpoint before this is made, and what it held is judged again in silence. Of
    several processes the first tells of its own share of each step. `give` is called with each alert.
    """

    run: Run
    dataset: Dataset
    examples: Examples
    steps_per_epoch: int
    due: Callable[[int], bool]
    give: Callable[[Alert], None]
    steps: list[tuple[int, list[int]]] = field(default_factory=list, init=False)
    waiting: list[Tensor] = field(default_factory=list, init=False)
    losses: list[NDArray[np.float32]] = field(default_factory=list, init=False)
    given: SuspiciousRows | None = field(default=None, init=False)
    judged: int = field(default=0, init=False)
    firm: bool = field(default=False, init=False)
    """Whether the list that is there was more than a note."""
    example_of: NDArray[np.int64] = field(init=False)
    watched: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.example_of = np.zeros(len(self.examples.samples), np.int64)
        self.example_of[self.examples.members] = np.arange(len(self.examples))[:, None]
        self.watched = np.arange(len(self.examples))[:: max(1, -(-len(self.examples) // MOST))]
        for line in self._journal().lines():
            self._keep(line["step"], line["rows"], line["losses"])
            self._judge(line["step"])

    def on_step(self, state: State, outcome: StepResult) -> None:
        if state.step > PASSES * self.steps_per_epoch:
            return
        each, rows = self.examples.members.shape[1], list[int]()
        for batch, losses in zip(outcome.step.batches, outcome.per_item, strict=True):
            if len(losses):  # the pass of an idle process has none
                rows += self.example_of[list(batch.members[::each])].tolist()
                self.waiting.append(losses)
        self.steps.append((state.step, rows))
        ends = state.step % self.steps_per_epoch == 0
        if ends or len(self.steps) >= EVERY or self.due(state.step):
            self._write()
        if ends and (suspicious := self._judge(state.step)) is not None:
            self.give(Alert("labels", suspicious.level, state.step, self.steps_per_epoch + 1, self._facts(suspicious)))

    def on_end(self, state: State) -> None:
        self._write()

    def _journal(self) -> Journal:
        return Journal(self.run.path / ROWS_FILE)

    def _write(self) -> None:
        """Read what waits on the device, append it to the journal and keep it."""
        if not self.waiting:
            return
        left, lines = torch.cat(self.waiting).double().cpu().numpy(), []
        every = int(self.watched[1]) if len(self.watched) > 1 else 1
        for step, rows in self.steps:
            means = left[: len(rows)] / np.maximum(self.examples.weights[rows], 1e-9)
            left = left[len(rows) :]
            chosen = [k for k, row in enumerate(rows) if row % every == 0]
            numbers, losses = [rows[k] for k in chosen], [round(float(means[k]), 4) for k in chosen]
            lines.append({"step": step, "rows": numbers, "losses": losses})
            self._keep(step, numbers, losses)
        self._journal().write_all(lines)
        self.steps, self.waiting = [], []

    def _keep(self, step: int, rows: list[int], losses: list[float]) -> None:
        number = (step - 1) // self.steps_per_epoch
        while len(self.losses) <= number:
            self.losses.append(np.full(len(self.watched), np.nan, np.float32))
        self.losses[number][np.searchsorted(self.watched, rows)] = losses

    def _judge(self, step: int) -> SuspiciousRows | None:
        """What is to be told after a whole pass, from the second on: once, and again where the list is another one."""
        passes, rest = divmod(step, self.steps_per_epoch)
        if rest or not self.judged < passes <= PASSES:
            return None
        self.judged = passes
        labels = self.examples.columns.get("label")
        of_rows = None if labels is None else labels[self.examples.members[self.watched, 0]]
        suspicious = suspicious_rows(np.stack(self.losses[:passes]), of_rows)
        self._list(suspicious)
        if suspicious is None or (self.given is not None and not _news(self.given, suspicious)):
            return None
        self.given = suspicious
        return suspicious

    def _list(self, suspicious: SuspiciousRows | None) -> None:
        """Write the whole list, or remove one that no longer holds. One that was more than a note stays where nothing
        is found any more, or little: by then wrong rows are learned by heart as well."""
        path = self.run.path / LIST_FILE
        if self.firm and (suspicious is None or suspicious.level == "note"):
            return
        self.firm = suspicious is not None and suspicious.level != "note"
        if suspicious is None:
            path.unlink(missing_ok=True)
            return
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in self._named(suspicious)]
        write_atomic(path, "".join(lines))

    def _named(self, suspicious: SuspiciousRows) -> list[dict[str, Any]]:
        """A line a source row, the most extreme first; a row that is repeated, or was cut into several, once."""
        samples = self.examples.members[self.watched[list(suspicious.rows)], 0]
        numbers = [int(n) for n in self.examples.samples.row[samples]]
        records, lines = self.dataset.training_rows(numbers), dict[tuple[str, str, int], dict[str, Any]]()
        for number, loss in zip(numbers, suspicious.losses, strict=True):
            if (record := records.get(number)) is not None:
                lines.setdefault((record.id, record.file, record.line), _line(record, loss, suspicious.median))
        return list(lines.values())

    def _facts(self, suspicious: SuspiciousRows) -> dict[str, Any]:
        lines = self._named(suspicious)
        shown = [{k: one[k] for k in ("file", "line", "label", "text", "loss") if k in one} for one in lines[:EXAMPLES]]
        return {
            "rows": len(lines) or len(suspicious.rows),
            "of": suspicious.of,
            "places": ", ".join(f"{one['file']}:{one['line']}" for one in lines[:3]),
            "median": round(suspicious.median, 4),
            "contrast": round(suspicious.contrast, 4),
            "examples": [{k: v for k, v in one.items() if k != "text" or not one.get("label")} for one in shown],
            "list": LIST_FILE,
        }


def row_watches(
    setup: TrainState, dataset: Dataset, due: Callable[[int], bool], give: Callable[[Alert], None]
) -> list[RowWatch]:
    """The watch of a session's rows, if the recipe wants one."""
    watch = setup.recipe.watch
    if not (watch.enabled and watch.rules.labels.enabled):
        return []
    return [RowWatch(setup.run, dataset, setup.train, setup.batches.steps_per_epoch, due, give)]


def _line(record: Record, loss: float, median: float) -> dict[str, Any]:
    """A row of the list: where it came from (as the ledger names it), what it teaches, and what it lost."""
    words = " ".join(next((m.content for m in record.messages if m.role == "user"), "").split())
    return {
        "file": record.file,
        "line": record.line,
        "id": record.id,
        **({"label": record.label} if record.label else {}),
        "text": words if len(words) <= WORDS else words[:WORDS] + "…",
        "loss": round(loss, 4),
        "median": round(median, 4),
    }


def _news(given: SuspiciousRows, suspicious: SuspiciousRows) -> bool:
    """Whether a list is worse than the one that was given, or has less than half of both together in common with it."""
    before, now = set(given.rows), set(suspicious.rows)
    worse = LEVELS.index(suspicious.level) > LEVELS.index(given.level)
    return worse or 2 * len(before & now) < len(before | now)
