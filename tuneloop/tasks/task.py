"""What a task is: which rows teach it, which head it needs, what a step counts, and what is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from tuneloop.base.records import Record
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import Batch
from tuneloop.data.tokens.samples import Sequences
from tuneloop.model.head import Answers, Head
from tuneloop.recipe.schema import TrainPart
from tuneloop.tasks.objective import Objective


@dataclass(frozen=True, slots=True)
class SplitView:
    """One side of a dataset as a task sees it. `records` reads them again; sample k is of record samples.row[k]."""

    samples: Sequences
    records: Callable[[], Iterable[Record]]
    label_column: Callable[[], Sequence[str]] | None = None
    """The label of each record, where it need not be read from the records."""

    def labels(self) -> Sequence[str]:
        """The label of each record."""
        return [r.label for r in self.records()] if self.label_column is None else self.label_column()


@dataclass(frozen=True, slots=True)
class TaskContext:
    """What all parts of a task are told. `labels` are the classes of the training rows, in order."""

    train: TrainPart
    tokenizer: Any
    labels: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    """What a text of each class counts for; none: all the same."""
    masked: bool | None = None
    """Whether the model's own head fills masks; None where nobody has asked."""


Classes = tuple[tuple[str, ...], tuple[float, ...]]
"""Labels in order, and the weight of each."""


def _as_encoded(rows: SplitView, setting: TaskContext) -> Sequences:
    return rows.samples


@dataclass(frozen=True, slots=True)
class Task:
    """One entry of TASKS. Planner, session, evaluation and export read its parts, never its name.

    `objective(model, examples, context)` is the module that accelerate wraps. `precompute_reference(objective,
    examples, batches, keep)` adds to the examples what must be known of the model before its first step (a reference's
    log-probabilities): found by passing `batches`, which are all the examples, or read from the file `keep`, where it
    was left when the run began.
    """

    kinds: frozenset[str]
    head: Callable[[TaskContext, Any], Head]
    """Called with the setting and the model's configuration."""
    items: Callable[[SplitView, TaskContext], Examples]
    objective: Callable[[nn.Module, Examples, TaskContext], Objective]
    precompute_reference: Callable[[Objective, Examples, Iterable[Batch], Path], Examples] | None = None
    needs_reference: Callable[[Examples, TrainPart], bool] | None = None
    """Whether `precompute_reference` passes all items, where that depends on the recipe."""
    answers: Answers = "text"
    """How its model answers; inference, evaluation and exports have one dict each with these as keys."""
    classes: Callable[[Mapping[str, int], TrainPart, Sequence[str]], Classes] | None = None
    """Rows of each label in training, and the labels of the model's own head -> the classes it tells apart, in order,
    and their weights. None where it names no class."""
    samples: Callable[[SplitView, TaskContext], Sequences] = _as_encoded
    """The rows as this task's model reads them, label or not."""

    def view(self, rows: SplitView, context: TaskContext) -> SplitView:
        """The rows with the samples that this task's model reads, which is what `items` takes."""
        return replace(rows, samples=self.samples(rows, context))

    def examples(self, rows: SplitView, context: TaskContext) -> Examples:
        """The examples of rows as they were tokenised."""
        return self.items(self.view(rows, context), context)

    @property
    def generates(self) -> bool:
        """It answers in text; others name a label or a score."""
        return self.answers == "text"
