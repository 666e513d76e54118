"""What a task is: which rows teach it, which head it needs, what a step counts, and what is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from tuneloop.data.items import Items
from tuneloop.data.samples import Samples
from tuneloop.records import Record
from tuneloop.sections import TrainPart

Kind = Literal["causal", "classifier", "masked"]


@dataclass(frozen=True, slots=True)
class Head:
    """What stands on the trunk: a language head, or one score a label (one in all for a reward)."""

    kind: Kind = "causal"
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """One side of a dataset as a task sees it. `records` reads them again; sample k is of record samples.row[k]."""

    samples: Samples
    records: Callable[[], Iterable[Record]]


@dataclass(frozen=True, slots=True)
class Setting:
    """What all parts of a task are told. `labels` are the classes of the training rows, in order."""

    train: TrainPart
    tokenizer: Any
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """One entry of TASKS. Planner, session, evaluation and export read its parts, never its name.

    `objective(model, items, setting)` is the module that accelerate wraps: it takes a `Packed` row and returns the sum
    of its losses, float32 []. `informed(objective, items, setting)` adds to the items what must be known of the model
    before its first step (a reference's log-probabilities).
    """

    kinds: frozenset[str]
    head: Callable[[Setting, Any], Head]
    """Called with the setting and the model's configuration."""
    items: Callable[[Rows, Setting], Items]
    objective: Callable[[nn.Module, Items, Setting], nn.Module]
    informed: Callable[[nn.Module, Items, Setting], Items] | None = None
    writes: bool = True
    """It answers in text; others name a label or a score."""
    labelled: bool = False
    """It needs the classes of the training rows."""
