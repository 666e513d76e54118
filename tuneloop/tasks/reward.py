"""Task reward: a score for an answer, learned from pairs (Bradley-Terry; Ouyang et al. 2022, arXiv:2203.02155).

The result is a sequence classifier with one label; it reads the last token of prompt and answer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from tuneloop.data.batches.examples import Examples
from tuneloop.model.head import Head
from tuneloop.tasks import pairs
from tuneloop.tasks.classify import LabelModel, probe
from tuneloop.tasks.task import SplitView, Task, TaskContext


class RewardModel(LabelModel):
    """Forward takes a `Packed` row of whole pairs, the better answer first, and returns the sum of their losses.

    `told` float32 [told_names] holds sums over the pairs trained on since it was last emptied.
    """

    told_names = ("accuracy", "margin", "reward_better", "reward_worse")

    def __init__(self, model: nn.Module, probe: Tensor) -> None:
        super().__init__(model, probe)
        self.told = torch.zeros(len(self.told_names))

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        segments: tuple[int, ...],
        positions: Tensor | None = None,
        targets: Tensor | None = None,
        columns: dict[str, Tensor] | None = None,
        members: tuple[int, ...] = (),
    ) -> Tensor:
        rewards = self.scores(input_ids, position_ids, segments, columns, members)[:, 0]
        if targets is not None and not len(targets):  # an idle rank's pass
            return rewards.sum() * 0.0
        better, worse = rewards[::2], rewards[1::2]
        margin = better - worse
        if self.training and torch.is_grad_enabled():
            told = torch.stack([(margin > 0).float(), margin, better, worse]).detach().sum(1)
            self.told = self.told.to(told.device) + told
        return -logsigmoid(margin).sum()


def _head(setting: TaskContext, config: Any) -> Head:
    return Head("classifier", ("reward",))


def _items(rows: SplitView, setting: TaskContext) -> Examples:
    return pairs.pairs(rows, setting.train.token_budget)


def objective(model: nn.Module, items: Examples, setting: TaskContext) -> RewardModel:
    """The loss around a model."""
    return RewardModel(model, probe(items, model))


REWARD = Task(kinds=frozenset({"preference"}), head=_head, items=_items, objective=objective, answers="score")
