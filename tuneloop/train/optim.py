"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from tuneloop.sections import TrainPart


def total_steps(train: TrainPart, steps_per_epoch: int) -> int:
    """Optimizer steps of a run; a fraction of an epoch is rounded up to whole steps.

    >>> total_steps(TrainPart(epochs=1.5), 3)
    5
    """
    if train.max_steps is not None:
        return train.max_steps
    return max(1, math.ceil(round(train.epochs * steps_per_epoch, 6)))


def warmup_steps(train: TrainPart, steps: int) -> int:
    """Steps over which the learning rate rises.

    >>> warmup_steps(TrainPart(warmup_ratio=0.1), 25)
    3
    """
    return train.warmup_steps if train.warmup_steps is not None else math.ceil(train.warmup_ratio * steps)


def curve(schedule: str, warmup: int, steps: int) -> Callable[[int], float]:
    """Step (from 0) -> factor of the peak rate: rises linearly, then falls to 0 by cosine or line, or stays.

    >>> [round(curve("linear", 2, 6)(k), 2) for k in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """

    def factor(k: int) -> float:
        if k < warmup:
            return (k + 1) / warmup
        done = (k - warmup) / max(1, steps - warmup)
        if schedule == "constant":
            return 1.0
        return max(0.0, 1 - done) if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor


def optimizer_for(model: nn.Module, train: TrainPart) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101); biases and norms are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=train.learning_rate, betas=train.betas)


def scheduler_for(optimizer: torch.optim.Optimizer, train: TrainPart, steps: int) -> LambdaLR:
    """The schedule over `steps` optimizer steps."""
    return LambdaLR(optimizer, curve(train.schedule, warmup_steps(train, steps), steps))
