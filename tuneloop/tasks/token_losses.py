"""What a label token loses in tasks chat and text: one visible dict. Cross entropy, the default, has a path of its own.

Each takes logits float32 [n, vocabulary], targets int64 [n] and the recipe's section, and returns float32 [n].
Measurements (held-out loss, perplexity) are in cross entropy whatever is trained with, so that runs compare.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tuneloop.recipe.schema import SftPart


def focal(logits: Tensor, targets: Tensor, part: SftPart) -> Tensor:
    """(1 - p)^gamma times the cross entropy (Lin et al. 2017, arXiv:1708.02002): what is known well counts less.

    >>> logits, targets = torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0])
    >>> [round(loss, 3) for loss in focal(logits, targets, SftPart(loss="focal", gamma=2.0)).tolist()]
    [0.173, 0.0]
    """
    entropy = cross_entropy(logits, targets, reduction="none")
    return (1 - torch.exp(-entropy)).clamp(min=0) ** part.gamma * entropy


TOKEN_LOSSES: dict[str, Callable[[Tensor, Tensor, SftPart], Tensor]] = {"focal": focal}
