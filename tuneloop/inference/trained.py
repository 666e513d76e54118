"""A model as it was trained: base and adapter, or the whole, of a finished run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tuneloop.base.errors import RunError
from tuneloop.data.tokens.chains import empty_thought
from tuneloop.hub.resolve import model_folder
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.methods import adapters
from tuneloop.methods.table import METHODS
from tuneloop.methods.wrap import bits_of
from tuneloop.model.config import model_config
from tuneloop.model.head import Head
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.run import run_recipe
from tuneloop.tasks.labels_file import CLASSES_FILE, masked, read_classes
from tuneloop.tasks.table import TASKS, task_name
from tuneloop.tasks.task import Task, TaskContext


@dataclass(frozen=True, slots=True)
class Trained:
    """A model as it was trained, ready to answer."""

    model: nn.Module
    tokenizer: Any
    recipe: Recipe
    task: Task
    setting: TaskContext
    head: Head
    answer_prefix: str = ""
    """What its rows, none of which has a thought, had before each answer: the template's empty thought."""
    folder: Path | None = None
    """The run's folder."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a finished run's model is, by its files: nothing of its weights is loaded for it."""

    recipe: Recipe
    weights: Path
    """The folder that training wrote: of an adapter, or of a whole model."""
    base: Path
    """The folder with the model's weights: `weights` itself where that is a whole model."""
    tokenizer: Any
    task: Task
    setting: TaskContext
    head: Head


def description(run: Path) -> Description:
    """Raises TL-RUN-MISSING for a folder that is no run, TL-RUN-UNFINISHED for one without a result."""
    if not (run / "recipe.yaml").is_file():
        raise RunError("TL-RUN-MISSING", where=str(run), path=run)
    recipe = run_recipe(run)
    weights = run / ("adapter" if METHODS[recipe.train.method].adapter else "model")
    if not weights.is_dir():
        raise RunError("TL-RUN-UNFINISHED", where=str(run), path=run)
    tokenizer = load_tokenizer(weights)
    task = TASKS[task_name(recipe.train.task, ())]
    base = weights if weights.name == "model" else model_folder(recipe.model)
    setting = TaskContext(
        recipe.train, tokenizer, masked=masked(base, tokenizer), **read_classes(weights / CLASSES_FILE)
    )
    return Description(recipe, weights, base, tokenizer, task, setting, task.head(setting, model_config(base)))


def load_trained(run: Path) -> Trained:
    """Base and adapter (or the whole model) of a finished run, the base held as in training: in 4 or 8 bits with qlora.

    Raises TL-RUN-MISSING for a folder that is no run, TL-RUN-UNFINISHED for one without a result, TL-RUN-DAMAGED for an
    adapter that lacks weights.
    """
    one = description(run)
    recipe, weights, base, tokenizer = one.recipe, one.weights, one.base, one.tokenizer
    model: nn.Module = untrained_model(base, recipe, one.head)
    if weights.name != "model":
        assert isinstance(model, PreTrainedModel)
        if Path(recipe.model.name).is_absolute():  # a folder may be another one by now; a name stands for one model
            adapters.require_same_base(weights, base)
        model = adapters.with_adapter(model, weights)
    prefix = answer_prefix(run, recipe, tokenizer)
    return Trained(model, tokenizer, recipe, one.task, one.setting, one.head, prefix, run)


def answer_prefix(run: Path, recipe: Recipe, tokenizer: Any) -> str:
    """The empty thought that answers begin behind, "" where the rows had thoughts or were trained to write it."""
    try:
        thoughts = json.loads((run / "dataset.json").read_text(encoding="utf-8")).get("thoughts", True)
    except (OSError, ValueError, AttributeError):
        return ""
    return "" if thoughts or recipe.prepare.empty_thoughts else empty_thought(tokenizer)


def untrained_model(folder: Path, recipe: Recipe, head: Head) -> PreTrainedModel:
    """The model of a recipe as training found it: a new head is the one that training began with."""
    torch.manual_seed(recipe.seed)
    return load_model(folder, recipe.model.dtype, head, bits_of(recipe.train))
