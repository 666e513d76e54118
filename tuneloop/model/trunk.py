"""The trunk: from tokens to the last hidden states, under whatever a method wrapped around the model.

All objectives come through here, so what a method does to a forward pass (virtual tokens, kept activations) is done in
one place and holds for every task.
"""

from __future__ import annotations

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel


def plain(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside an adapter's wrapper (adapters that are injected stay in it)."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel)
    return inner


def states(
    model: nn.Module, input_ids: Tensor, position_ids: Tensor, segments: tuple[int, ...] | None = None
) -> Tensor:
    """Last hidden states [length, width] of a packed row: ids and positions int64 [1, length]."""
    base = plain(model)
    trunk = getattr(base, base.base_model_prefix)
    out = trunk(input_ids=input_ids, position_ids=position_ids, segments=segments, use_cache=False)
    hidden: Tensor = out.last_hidden_state[0]
    return hidden
