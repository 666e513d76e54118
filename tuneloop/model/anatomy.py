"""The parts of a model: its trunk, and what stands on it (a language head, or scores of labels)."""

from __future__ import annotations

import torch
from peft import TaskType
from torch import nn
from transformers import PreTrainedModel

OLD_LABELS = "old_labels"
"""Attribute of a classifier: the labels of the head it came with, where those of the rows are others."""


def trunk_name(model: nn.Module) -> str:
    """Name of the child that is the trunk; "" where the model is a trunk itself."""
    name = str(getattr(model, "base_model_prefix", "") or "")
    return name if isinstance(getattr(model, name, None), nn.Module) else ""


def heads(model: nn.Module) -> list[str]:
    """Names of the children beside the trunk that have weights."""
    backbone = trunk_name(model)
    if backbone:
        return [n for n, m in model.named_children() if n != backbone and next(m.parameters(), None) is not None]
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return [n for n, m in model.named_modules() if head is not None and m is head]


def scores_labels(model: nn.Module) -> bool:
    """Whether the head scores labels instead of writing words."""
    return type(model).__name__.endswith("ForSequenceClassification")


def new_parts(model: nn.Module) -> list[str]:
    """The modules that no file of the base model has: a head of labels, and what was drawn at random with it.

    They are trained and saved whatever the method; `new_weights` are the names that `load_model` found in no file.
    """
    if not scores_labels(model):
        return []
    backbone = f"{trunk_name(model)}."
    new = (name.rsplit(".", 1)[0] for name in getattr(model, "new_weights", ()) if name.startswith(backbone))
    return list(dict.fromkeys([*heads(model), *new]))


def never_quantised(model: nn.Module) -> list[str]:
    """The parts of a classifier that may be in no file: they are trained, and there is nothing to quantise."""
    return [*heads(model), *(name for name, _ in model.named_modules() if name.endswith(".pooler"))]


@torch.no_grad()
def begin_anew(model: PreTrainedModel, labels: int) -> list[str]:
    """Draw the rows of labels in a classifier's head anew, as transformers does where their number has changed.

    Returns the names of their weights; `labels` is how many there are.
    """
    names = []
    for head in heads(model):
        for name, module in model.get_submodule(head).named_modules(prefix=head):
            own = dict(module.named_parameters(recurse=False))
            if not any(p.shape[0] == labels for p in own.values()):
                continue
            for parameter in own.values():
                parameter._is_hf_initialized = False
            model._init_weights(module)
            names += [f"{name}.{x}" for x in own]
    return names


def task_type(model: nn.Module) -> TaskType | None:
    """PEFT's word for what the model does; None where it has none (masked words), and takes the class's name."""
    if scores_labels(model):
        return TaskType.SEQ_CLS
    return None if type(model).__name__.endswith("ForMaskedLM") else TaskType.CAUSAL_LM
