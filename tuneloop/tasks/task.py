"""What a task is: which rows teach it, which head it needs, what a step counts, and what is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tuneloop.base.records import Record
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import Packed
from tuneloop.data.tokens.samples import Sequences
from tuneloop.model.head import Answers, Head
from tuneloop.recipe.schema import TrainPart


@dataclass(frozen=True, slots=True)
class SplitView:
    """One side of a dataset as a task sees it. `records` reads them again; sample k is of record samples.row[k]."""

    samples: Sequences
    records: Callable[[], Iterable[Record]]


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

    `objective(model, items, setting)` is the module that accelerate wraps: it takes a `Packed` row and returns the sum
    of its losses, float32 []. `precompute_reference(objective, items, rows, keep)` adds to the examples what must be
    known of the model before its first step (a reference's log-probabilities): found by passing `rows`, which are all
    the examples, or read from the file `keep`, where it was left when the run began.
    """

    kinds: frozenset[str]
    head: Callable[[TaskContext, Any], Head]
    """Called with the setting and the model's configuration."""
    items: Callable[[SplitView, TaskContext], Examples]
    objective: Callable[[nn.Module, Examples, TaskContext], nn.Module]
    precompute_reference: Callable[[nn.Module, Examples, Iterable[Packed], Path], Examples] | None = None
    needs_reference: Callable[[Examples, TrainPart], bool] | None = None
    """Whether `precompute_reference` passes all items, where that depends on the recipe."""
    answers: Answers = "text"
    """How its model answers; inference, evaluation and exports have one dict each with these as keys."""
    classes: Callable[[Mapping[str, int], TrainPart, Sequence[str]], Classes] | None = None
    """Rows of each label in training, and the labels of the model's own head -> the classes it tells apart, in order,
    and their weights. None where it names no class."""
    samples: Callable[[SplitView, TaskContext], Sequences] = _as_encoded
    """The rows as this task's model reads them, label or not."""

    @property
    def generates(self) -> bool:
        """It answers in text; others name a label or a score."""
        return self.answers == "text"
