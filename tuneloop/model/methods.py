"""The training methods: one visible dict. Planner, export and serving read an entry's flags, never its name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tuneloop.errors import ModelError
from tuneloop.sections import TrainPart


@dataclass(frozen=True, slots=True)
class Method:
    """How a method changes a model, and what may be done with it."""

    wrap: Callable[[PreTrainedModel, TrainPart], nn.Module]
    adapter: bool
    """The result is an adapter folder; otherwise a whole model."""
    mergeable: bool
    """The adapter can be added into the base weights."""
    packable: bool
    """Several samples may share a row."""
    checkpointing: bool
    """Activations may be recomputed."""


LINEAR = (nn.Linear, Conv1D)
"""What multiplies by a weight matrix; GPT-2 has the transposed kind."""


def linear_names(model: nn.Module) -> list[str]:
    """Last name parts of all linear layers but the language head: what a LoRA may target."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, LINEAR) and m is not head})


def _lora(model: PreTrainedModel, train: TrainPart) -> nn.Module:
    lora = train.lora
    known = linear_names(model)
    targets = known if lora.targets == "all-linear" else list(lora.targets)
    unknown = [x for x in targets if not any(n == x or n.endswith("." + x) for n, _ in model.named_modules())]
    if not targets:
        raise ModelError("TL-MODEL-NOTHING-TRAINED", where="train.lora.targets", method=train.method)
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, 3, 0.4)
        raise ModelError(
            "TL-MODEL-MODULE", where="train.lora.targets", got=", ".join(unknown), near=", ".join(close or known)
        )
    config = LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets,
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),
    )  # fmt: skip
    wrapped: nn.Module = get_peft_model(model, config)
    return wrapped


def _full(model: PreTrainedModel, train: TrainPart) -> nn.Module:
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


METHODS: dict[str, Method] = {
    "lora": Method(_lora, adapter=True, mergeable=True, packable=True, checkpointing=True),
    "full": Method(_full, adapter=False, mergeable=False, packable=True, checkpointing=True),
}


def parameters(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters, shared ones counted once."""
    return (
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in model.parameters() if p.requires_grad),
    )
