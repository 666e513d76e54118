"""The blocks of a model, one on the other, and the lowest one that training reaches."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from tuneloop.model.backbone import unwrap


def blocks(base: PreTrainedModel) -> list[nn.Module]:
    """The model's layers in order, [] where it has none of its own for each (ALBERT shares one)."""
    count = int(getattr(base.config.get_text_config(), "num_hidden_layers", 0))
    # The outermost comes first: a list of experts of the same length lies deeper.
    lists = (list(m) for m in base.modules() if isinstance(m, nn.ModuleList) and len(m) == count > 0)
    return next(lists, [])


def lowest_trained(model: nn.Module) -> int:
    """How many blocks lie below everything that is trained: no gradient goes there, and their output never changes.

    0 where embeddings, the lowest block, or anything outside of the model itself (a prompt's vectors) are trained; all
    of them where only what stands behind them is (norm, pooler, head).
    """
    base = unwrap(model)
    stack = blocks(base)
    own = {id(p) for p in base.parameters()}
    if any(p.requires_grad and id(p) not in own for p in model.parameters()):
        return 0
    place: dict[int, int] = {}
    for k, block in enumerate(stack):
        for parameter in block.parameters():
            place.setdefault(id(parameter), k)
    lowest, behind = len(stack), False
    for parameter in base.parameters():  # in the order in which they are passed; shared ones at their first place
        behind = behind or id(parameter) in place
        if parameter.requires_grad:
            lowest = min(lowest, place.get(id(parameter), len(stack) if behind else 0))
    return lowest
