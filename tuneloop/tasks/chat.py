"""Tasks chat and text: the next token, where it carries a label (supervised tuning, continued pre-training)."""

from __future__ import annotations

import torch
from torch import nn

from tuneloop.data.batches.examples import Examples
from tuneloop.model.head import Head
from tuneloop.tasks.loss import LossModel, head_is_exact
from tuneloop.tasks.task import SplitView, Task, TaskContext


def objective(model: nn.Module, items: Examples, setting: TaskContext | None = None) -> LossModel:
    """The loss around a model, with the model's own head where ours would differ."""
    first = items.members[:, 0]
    shortest = items.samples[int(first[items.samples.lengths[first].argmin()])]
    probe = torch.tensor(shortest.ids.tolist()).unsqueeze(0)
    return LossModel(model, own_head=not head_is_exact(model, probe.to(next(model.parameters()).device)))


def _items(rows: SplitView, setting: TaskContext) -> Examples:
    return Examples.of(rows.samples)


CHAT = Task(
    kinds=frozenset({"chat", "text"}), head=lambda setting, config: Head(), items=_items, objective=objective
)  # fmt: skip
TEXT = CHAT
