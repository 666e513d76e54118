"""A model with what a method adds to it, new or gone on from an adapter."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    PreTrainedModel,
)

from tuneloop.base.errors import ModelError
from tuneloop.base.language import t
from tuneloop.methods import adapters
from tuneloop.methods.table import METHODS
from tuneloop.methods.virtual import require_effect
from tuneloop.model import anatomy, determinism
from tuneloop.model.backbone import NOISE
from tuneloop.recipe.schema import QloraPart, TrainPart


def wrap(model: PreTrainedModel, train: TrainPart, seed: int) -> nn.Module:
    """The model with what the method adds to it, started from `seed`, or from the adapter that the recipe goes on from.

    Raises TL-MODEL-NOTHING-TRAINED, TL-MODEL-CHECKPOINTING, TL-MODEL-METHOD, TL-MODEL-MODULE, TL-MODEL-RANK,
    TL-MODEL-LAYERS, and what `with_adapter` raises.
    """
    method = METHODS[train.method]
    if train.checkpointing and not method.checkpointing:
        raise ModelError("TL-MODEL-CHECKPOINTING", where="train.checkpointing", method=train.method)
    torch.manual_seed(seed)
    wrapped = _continued(model, train) if train.adapter else method.wrap(model, train)
    if train.checkpointing:
        how = {"use_reentrant": False, "context_fn": determinism.recomputing}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
        model.disable_input_require_grads()  # not needed so, and frozen blocks would compute gradients for it
    setattr(model, NOISE, train.neftune_alpha)
    if not any(p.requires_grad for p in wrapped.parameters()):
        raise ModelError("TL-MODEL-NOTHING-TRAINED", where="train.method", method=train.method)
    if method.virtual and model.device.type != "meta":
        assert isinstance(wrapped, PeftModel)
        require_effect(wrapped, train.method)
    return wrapped


def _continued(model: PreTrainedModel, train: TrainPart) -> PeftModel:
    """The model with the adapter to go on from, whose own settings hold. Raises TL-MODEL-METHOD for another kind."""
    assert train.adapter
    folder, method = Path(train.adapter), METHODS[train.method]
    kind = str(adapters.read_config(folder)["peft_type"])
    if kind != method.kind:
        reason = t(
            "the adapter is a {kind}; add it into the weights with train.merge, or take the method it is of", kind=kind
        )
        raise ModelError("TL-MODEL-METHOD", where="train.adapter", method=train.method, reason=reason)
    theirs, ours = adapters.read_config(folder).get("task_type"), anatomy.task_type(model)
    if theirs and ours and theirs != ours.value:
        reason = t("the adapter is of a model for {theirs}, and this one is for {ours}", theirs=theirs, ours=ours.value)
        raise ModelError("TL-MODEL-METHOD", where="train.adapter", method=train.method, reason=reason)
    adapters.require_same_bits(folder, bits_of(train), train.method)
    if model.device.type == "meta":
        return adapters.unfilled(model, folder)
    adapters.require_same_base(folder, Path(str(model.name_or_path)))
    return adapters.with_adapter(model, folder, trainable=True)


def bits_of(train: TrainPart) -> QloraPart | None:
    """How the method holds the frozen weights; None where it holds them as they are."""
    return train.qlora if METHODS[train.method].quantize else None
