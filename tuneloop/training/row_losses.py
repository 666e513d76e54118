"""What each held-out row loses, from the pass that measures the loss of all of them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import Batch
from tuneloop.tasks.objective import Losses


@torch.no_grad()
def row_losses(
    objective: nn.Module, batches: Iterable[Batch], examples: Examples, device: torch.device
) -> tuple[float, NDArray[np.float64]]:
    """(`training.loop.held_loss` of the batches, the loss of each example, float64 [n]), without dropout."""
    example_of = np.empty(len(examples.samples), np.int64)
    example_of[examples.members] = np.arange(len(examples))[:, None]
    was, total, losses = objective.training, 0.0, np.zeros(len(examples))
    objective.eval()
    for batch in batches:
        lost: Losses = objective(batch.to(device))
        total += float(lost.total)
        each = examples.members.shape[1]
        losses[example_of[list(batch.members[::each])]] = lost.per_item.double().cpu().numpy()
    objective.train(was)
    return total, losses
