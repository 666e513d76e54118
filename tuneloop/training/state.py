"""What a session works with before its first step: the model and what lies around it, the examples, the optimizer.

What covers or replaces a module's forward is laid on in this order, each around what stands above it:

    methods/wrap               what the method adds to the model: adapters, virtual tokens, 4-bit products
    model/kernels/install      faster forwards of single modules, each proven equal to its own
    tasks (Task.objective)     the loss around the model
    model/precision.cast       autocast around the objective, where trained weights are float32 and the model is not
    accelerate (prepare)       one mean of the gradients over all processes; sharding will come here
    model/frozen_cache         frozen blocks run without gradient, or hand on what was computed once
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tuneloop.base.refusals import require_space
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import Batch, pack_examples
from tuneloop.data.batches.plan import BatchPlan, batch_plan
from tuneloop.methods.table import METHODS, parameters
from tuneloop.model import determinism, precision
from tuneloop.model.kernels.install import install
from tuneloop.model.load import pick_dtype
from tuneloop.monitor.meters import Meter
from tuneloop.monitor.remedies import Amendment, amended
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run
from tuneloop.tasks.objective import Objective
from tuneloop.tasks.task import Task
from tuneloop.training import distributed
from tuneloop.training.input import TrainingInput
from tuneloop.training.model_folder import starting_model
from tuneloop.training.optim import optimizer_for, scheduler_for, total_steps
from tuneloop.training.packing import packs_exactly, rows


def _place(model: nn.Module, device: torch.device) -> None:
    """Onto the device before anything is measured: what is checked is what will run."""
    determinism.settle(device)
    if not getattr(model, "is_quantized", False):  # bitsandbytes has placed its weights when it read them
        model.to(device)


def _require_space(run: Run, recipe: Recipe, model: nn.Module) -> None:
    """Checkpoints hold the trained weights and two moments of each; the result holds the weights once more.

    One checkpoint always is at the end; where none is asked for before, it is the only one. Of a run that has some
    nothing is asked: old ones make room for new ones.
    """
    if any(run.checkpoints.glob("step-*")):
        return
    trained, settings = parameters(model)[1], recipe.train
    keep = 1 if settings.save_strategy == "no" else (settings.save_total_limit or 10) + 1
    require_space(run.path, 4 * trained * (3 * keep + 1))


@dataclass(frozen=True, slots=True, eq=False)
class TrainState:
    """What a session works with. `train` and `held` are its examples, `total` its optimizer steps."""

    run: Run
    recipe: Recipe
    model: nn.Module
    objective: Objective
    train: Examples
    held: Examples
    batches: BatchPlan
    total: int
    optimizer: Optimizer
    scheduler: LRScheduler
    metrics: Journal
    events: Journal
    meter: Meter
    amendment: Amendment = field(default_factory=Amendment)
    """What remedies have changed since the run began; `recipe` and `batches` have it already."""


def amended_recipe(recipe: Recipe, amendment: Amendment) -> Recipe:
    """The recipe as remedies have changed it."""
    train = recipe.train
    changes = {
        "micro_batch_size": amendment.micro_batch_size or train.micro_batch_size,
        "checkpointing": train.checkpointing or amendment.checkpointing,
    }
    return recipe.model_copy(update={"train": train.model_copy(update=changes)})


def build(run: Run, assembled: TrainingInput, device: torch.device) -> TrainState:
    """The model on its device with all that lies around it, and the rest of a session: as the recipe says and what
    remedies of this run have changed of it. Raises TL-MACHINE-DISK."""
    events = Journal(run.events)
    amendment = distributed.shared(amended(events.lines()))
    recipe, task, context = amended_recipe(assembled.recipe, amendment), assembled.task, assembled.context
    train, held = assembled.train, assembled.held.take(np.flatnonzero(assembled.held.weights))
    dtype, budget = pick_dtype(recipe.model.dtype), recipe.train.token_budget
    model = starting_model(recipe, assembled.folder, task, context)
    _require_space(run, recipe, model)
    _place(model, device)
    if not precision.mixed(model, dtype):  # they are for one type throughout
        install(model)
    with precision.computing(model, dtype):
        objective = task.objective(model, train, context)
    precision.cast(objective, dtype)
    packing = METHODS[recipe.train.method].packable and packs_exactly(objective, train, held)
    with precision.computing(objective, dtype):  # a reference is of the same products as what is compared with it
        train, held = (
            _with_reference(
                task, objective, side, rows(side, budget, packing=packing), run.path / f"reference-{name}.npy"
            )
            for side, name in ((train, "train"), (held, "validation"))
        )
    batches = batch_plan(recipe, train, packing=packing, skipped=amendment.skip, dropped=amendment.drop)
    total = total_steps(recipe.train, batches.steps_per_epoch)
    optimizer = optimizer_for(objective, recipe.train)
    scheduler = scheduler_for(optimizer, recipe.train, total, amendment.slower)
    return TrainState(
        run,
        recipe,
        model,
        objective,
        train,
        held,
        batches,
        total,
        optimizer,
        scheduler,
        Journal(run.metrics),
        events,
        Meter(),
        amendment,
    )


def _with_reference(
    task: Task, objective: Objective, examples: Examples, batches: Iterator[Batch], file: Path
) -> Examples:
    """The examples with what must be known of the model before its first step; on the same machine it is found once."""
    if task.precompute_reference is None:
        return examples
    if next(objective.parameters()).device.type != distributed.world().device.type:
        objective.to(distributed.world().device)
    with distributed.world().local_main_process_first():
        return task.precompute_reference(objective, examples, batches, file)


def unordered_operation(objective: Objective, examples: Examples) -> str:
    """The operation for which this model's backward passes have no fixed order on a card, "" where they have one.

    The shortest example tells; nothing is left of its pass.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return ""
    shortest = int(np.where(examples.weights > 0, examples.lengths, np.iinfo(np.int32).max).argmin())
    batch, was = pack_examples(examples, [shortest]).to(next(objective.parameters()).device), objective.training
    try:
        return determinism.probe(lambda: objective.train()(batch).total)
    finally:
        objective.train(was)
        objective.zero_grad(set_to_none=True)
