"""The parts of a model: its trunk, and what stands on it (a language head, or scores of labels)."""

from __future__ import annotations

from peft import TaskType
from torch import nn
from transformers import PreTrainedModel


def trunk_name(model: nn.Module) -> str:
    """Name of the child that is the trunk; "" where the model is a trunk itself."""
    name = str(getattr(model, "base_model_prefix", "") or "")
    return name if isinstance(getattr(model, name, None), nn.Module) else ""


def heads(model: nn.Module) -> list[str]:
    """Names of the children beside the trunk that have weights."""
    trunk = trunk_name(model)
    if trunk:
        return [n for n, m in model.named_children() if n != trunk and next(m.parameters(), None) is not None]
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
    trunk = f"{trunk_name(model)}."
    new = (name.rsplit(".", 1)[0] for name in getattr(model, "new_weights", ()) if name.startswith(trunk))
    return list(dict.fromkeys([*heads(model), *new]))


def task_type(model: nn.Module) -> TaskType | None:
    """PEFT's word for what the model does; None where it has none (masked words), and takes the class's name."""
    if scores_labels(model):
        return TaskType.SEQ_CLS
    return None if type(model).__name__.endswith("ForMaskedLM") else TaskType.CAUSAL_LM
