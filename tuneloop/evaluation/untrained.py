"""The model as it was before training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from tuneloop.base.errors import RunError
from tuneloop.hub.resolve import model_folder
from tuneloop.inference.trained import Trained, untrained_model
from tuneloop.methods.adapters import with_adapter
from tuneloop.model.backbone import virtual_kind
from tuneloop.model.load import placed


@contextmanager
def untrained(trained: Trained) -> Iterator[nn.Module]:
    """The adapter set aside, or the base loaded where there is none; a new head as training began with it.

    A run that went on from an adapter began with that one. Raises TL-RUN-BEGINNING where it is gone: another beginning
    would make another gain.
    """
    begun = trained.recipe.train.adapter
    if begun and not Path(begun).is_dir():
        raise RunError("TL-RUN-BEGINNING", where=begun, path=begun)
    if begun:
        base = untrained_model(model_folder(trained.recipe.model), trained.recipe, trained.head)
        yield placed(with_adapter(base, Path(begun)))
    elif not isinstance(trained.model, PeftModel):
        yield placed(untrained_model(model_folder(trained.recipe.model), trained.recipe, trained.head))
    elif virtual_kind(trained.model) and not hasattr(trained.model, "prepare_inputs_for_generation"):
        with _without_virtual_tokens(trained.model):
            yield trained.model
    else:
        with trained.model.disable_adapter():
            yield trained.model


@contextmanager
def _without_virtual_tokens(model: PeftModel) -> Iterator[None]:
    """PEFT's own way to set virtual tokens aside is for models that write; this is for those that score."""
    heads = [module for module in model.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    model._adapters_disabled = True
    for head in heads:
        head.enable_adapters(False)
    try:
        yield
    finally:
        model._adapters_disabled = False
        for head in heads:
            head.enable_adapters(True)
