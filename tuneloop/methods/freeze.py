"""Freeze: the last blocks, named modules or the head are trained; all else stays as it is."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from tuneloop.base.errors import ModelError
from tuneloop.base.language import t
from tuneloop.methods.lora import require_modules
from tuneloop.model.anatomy import heads, new_parts, trunk_name
from tuneloop.model.blocks import blocks
from tuneloop.recipe.schema import TrainPart


def freeze(model: PreTrainedModel, train: TrainPart) -> nn.Module:
    """The model with gradients for the chosen parts alone. A head of labels or scores is new, and always trained.

    Tied embeddings are one tensor with the head: `head` then trains them as well, and the saved model stays tied.
    Raises TL-MODEL-LAYERS, TL-MODEL-MODULE.
    """
    part = train.freeze
    model.requires_grad_(False)
    chosen: list[nn.Module] = []
    if part.modules:
        require_modules(model, part.modules, "train.freeze.modules")
        chosen += [m for n, m in model.named_modules() if any(n == x or n.endswith("." + x) for x in part.modules)]
    elif part.layers:
        stack = blocks(model)
        if part.layers > len(stack):
            raise ModelError("TL-MODEL-LAYERS", where="train.freeze.layers", got=part.layers, layers=len(stack))
        chosen += [*stack[len(stack) - part.layers :], *_behind(model, stack[0])]
    names = new_parts(model) or (heads(model) if part.head else [])
    chosen += [model.get_submodule(n) for n in names]
    for module in chosen:
        module.requires_grad_(True)
    return model


def describe_freeze(train: TrainPart) -> str:
    """What is trained, in a few words."""
    return ", ".join(train.freeze.modules) or t("the last {n} layers", n=train.freeze.layers)


def _behind(model: PreTrainedModel, block: nn.Module) -> list[nn.Module]:
    """The trunk's own parts behind its blocks: the last norm, an encoder's pooler."""
    children = list(model.get_submodule(trunk_name(model)).children())
    within = [any(m is block for m in child.modules()) for child in children]
    return children[within.index(True) + 1 :]


def tied_head(model: PreTrainedModel) -> bool:
    """Whether training the head trains the embeddings: they are one tensor."""
    head = model.get_output_embeddings()
    if head is None:
        return False
    weight: object = head.weight
    return weight is model.get_input_embeddings().weight and any(p.requires_grad for p in head.parameters())
