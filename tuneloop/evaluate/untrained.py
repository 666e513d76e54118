"""The model as it was before training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from torch import nn

from tuneloop.model.load import Trained, placed, resolve, untrained_model


@contextmanager
def untrained(trained: Trained) -> Iterator[nn.Module]:
    """The adapter set aside, or the base loaded where there is none; a new head as training began with it."""
    if isinstance(trained.model, PeftModel):
        with trained.model.disable_adapter():
            yield trained.model
    else:
        yield placed(untrained_model(resolve(trained.recipe.model), trained.recipe, trained.head))
