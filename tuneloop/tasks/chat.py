"""Tasks chat and text: the next token, where it carries a label (supervised tuning, continued pre-training)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tuneloop.data.batches.examples import Examples
from tuneloop.model.head import Head
from tuneloop.recipe.schema import SftPart
from tuneloop.tasks.loss import LossModel, head_is_exact
from tuneloop.tasks.task import SplitView, Task, TaskContext
from tuneloop.tasks.token_losses import TOKEN_LOSSES


def objective(model: nn.Module, items: Examples, setting: TaskContext | None = None) -> LossModel:
    """The loss around a model, with the model's own head where ours would differ."""
    first = items.members[:, 0]
    shortest = items.samples[int(first[items.samples.lengths[first].argmin()])]
    probe = torch.tensor(shortest.ids.tolist()).unsqueeze(0)
    own_head = not head_is_exact(model, probe.to(next(model.parameters()).device))
    return LossModel(model, own_head=own_head, token_loss=_token_loss(setting.train.sft) if setting else None)


def _token_loss(part: SftPart) -> Callable[[Tensor, Tensor], Tensor] | None:
    """What the recipe's section says a token loses; None for plain cross entropy."""
    formula = TOKEN_LOSSES.get(part.loss)
    return None if formula is None else lambda logits, targets: formula(logits, targets, part)


def _items(rows: SplitView, setting: TaskContext) -> Examples:
    return Examples.of(rows.samples)


CHAT = Task(kinds=frozenset({"chat", "text"}), head=lambda setting, config: Head(), items=_items, objective=objective)
TEXT = CHAT
