"""What each training row lost when it was trained on, written down for the whole run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuneloop.data.batches.examples import Examples
from tuneloop.model.checkpoint import State
from tuneloop.runs.journal import Journal
from tuneloop.training.loop import StepResult

MOST = 50_000
"""Examples whose losses are kept; of more, as many of them at even distances. A line a step, about 15 bytes a loss."""


@dataclass(slots=True)
class RowWatch:
    """Writes rows.jsonl: step, rows (numbers of examples), losses (each by its weight: a mean over label tokens).

    Losses stay on the device until `due(step)`, which must be true wherever a checkpoint is written. Of several
    processes the first tells of its own share of each step.
    """

    journal: Journal
    examples: Examples
    due: Callable[[int], bool]
    steps: list[tuple[int, list[int]]] = field(default_factory=list, init=False)
    waiting: list[Tensor] = field(default_factory=list, init=False)
    example_of: NDArray[np.int64] = field(init=False)
    every: int = field(init=False)

    def __post_init__(self) -> None:
        self.example_of = np.zeros(len(self.examples.samples), np.int64)
        self.example_of[self.examples.members] = np.arange(len(self.examples))[:, None]
        self.every = -(-len(self.examples) // MOST)

    def on_step(self, state: State, outcome: StepResult) -> None:
        each = self.examples.members.shape[1]
        of_step: list[int] = []
        for batch, losses in zip(outcome.step.batches, outcome.per_item, strict=True):
            if len(losses):  # an idle process's pass has none
                of_step += self.example_of[list(batch.members[::each])].tolist()
                self.waiting.append(losses)
        self.steps.append((state.step, of_step))
        if self.due(state.step):
            self.write()

    def on_end(self, state: State) -> None:
        self.write()

    def write(self) -> None:
        """Read what waits on the device, and append it to the journal."""
        if not self.waiting:
            return
        left = torch.cat(self.waiting).double().cpu().numpy()
        lines = []
        for step, rows in self.steps:
            mine, left = left[: len(rows)], left[len(rows) :]
            means = mine / np.maximum(self.examples.weights[rows], 1e-9)
            kept = [k for k, row in enumerate(rows) if row % self.every == 0]
            lines.append(
                {"step": step, "rows": [rows[k] for k in kept], "losses": [round(float(means[k]), 4) for k in kept]}
            )
        self.journal.write_all(lines)
        self.steps, self.waiting = [], []
