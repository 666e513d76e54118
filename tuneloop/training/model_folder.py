"""The model as training begins, with what the method adds; and the result that it leaves on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from tuneloop.hub.resolve import on_hub
from tuneloop.methods import adapters
from tuneloop.methods.table import METHODS
from tuneloop.methods.wrap import bits_of, wrap
from tuneloop.model import precision
from tuneloop.model.config import model_config
from tuneloop.model.load import load_model, pick_dtype
from tuneloop.model.old_keys import keep_old_keys
from tuneloop.model.quiet import quiet
from tuneloop.recipe.schema import ModelPart, QloraPart, Recipe
from tuneloop.tasks.task import Task, TaskContext


def starting_model(recipe: Recipe, folder: Path, task: Task, setting: TaskContext) -> nn.Module:
    """The model of a recipe as training begins: with the task's head and what the method adds, drawn from the seed."""
    config = model_config(folder)
    torch.manual_seed(recipe.seed)  # a new head is drawn at random
    dtype = pick_dtype(recipe.model.dtype)
    weights_trained = not METHODS[recipe.train.method].adapter and dtype in precision.HALVES
    model = load_model(
        folder, "float32" if weights_trained else recipe.model.dtype, task.head(setting, config), bits_of(recipe.train)
    )
    wrapped = wrap(model, recipe.train, recipe.seed)
    precision.hold(wrapped, dtype, cast_frozen=weights_trained)
    return wrapped


def save_result(
    model: nn.Module,
    tokenizer: Any,
    base: Path,
    target: Path,
    part: ModelPart | None = None,
    bits: QloraPart | None = None,
) -> None:
    """Write the adapter (PEFT's own layout) or the whole model, with tokenizer and template, into `target`.

    `bits` says how the weights of the base were held.
    """
    tokenizer.save_pretrained(str(target))
    if not isinstance(model, PeftModel):
        assert isinstance(model, PreTrainedModel)
        with quiet():
            model.save_pretrained(str(target), safe_serialization=True)
        keep_old_keys(target, base)
        return
    keep_old_keys(target, base)
    # Other people have the hub as well, but not this machine's folders.
    name = part.name if part else ""
    named = {
        "base_model_name_or_path": name if on_hub(name) else str(base),
        "revision": part.revision if part and on_hub(name) else None,
    }
    adapters.save_adapter(model, target, base, named, bits)
