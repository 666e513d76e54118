"""Task reward: a score for an answer, learned from pairs (Bradley-Terry; Ouyang et al. 2022, arXiv:2203.02155).

The result is a sequence classifier with one label; it reads the last token of prompt and answer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import Batch
from tuneloop.model.head import Head
from tuneloop.tasks import pairs
from tuneloop.tasks.classify import LabelModel, probe
from tuneloop.tasks.objective import Losses
from tuneloop.tasks.task import SplitView, Task, TaskContext


class RewardModel(LabelModel):
    """Bradley-Terry loss of whole pairs, the better answer first; what an example loses is a pair's."""

    metrics = ("accuracy", "margin", "reward_better", "reward_worse")
    chance = math.log(2)

    def forward(self, batch: Batch) -> Losses:
        rewards = self.scores(batch)[:, 0]
        if not batch.labels:  # an idle rank's pass
            return Losses(rewards.sum() * 0.0, rewards.new_zeros(0))
        better, worse = rewards[::2], rewards[1::2]
        margin = better - worse
        each = -logsigmoid(margin)
        sums = torch.stack([(margin > 0).float(), margin, better, worse]).detach().sum(1)
        return Losses(each.sum(), each.detach(), sums)


def _head(setting: TaskContext, config: Any) -> Head:
    return Head("classifier", ("reward",))


def _items(rows: SplitView, setting: TaskContext) -> Examples:
    return pairs.pairs(rows, setting.train.token_budget)


def objective(model: nn.Module, items: Examples, setting: TaskContext) -> RewardModel:
    """The loss around a model."""
    return RewardModel(model, probe(items, model))


REWARD = Task(kinds=frozenset({"preference"}), head=_head, items=_items, objective=objective, answers="score")
