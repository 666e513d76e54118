"""The folder of a run before its first step: what is known by then, and what must outlive the places it came from."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneloop.base import refusals
from tuneloop.hub.resolve import model_folder
from tuneloop.methods import adapters
from tuneloop.model import quantize
from tuneloop.model.load import load_model
from tuneloop.recipe.paths import anchored
from tuneloop.recipe.recipe import dump
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import BASE, BEGUN, Run, new_run
from tuneloop.training.input import TrainingInput


def begin(assembled: TrainingInput, foreseen: dict[str, Any], workspace: Path, number: int | None) -> Run:
    """Make the run's folder, with what is known before the first step; where that fails, nothing is left of it.

    `foreseen` is what plan.json holds. Raises TL-MACHINE-FOLDER.
    """
    refusals.require_name(workspace)
    run = new_run(workspace, assembled.recipe.name, number)
    try:
        _describe(run, assembled, foreseen)
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return run


def _describe(run: Run, assembled: TrainingInput, foreseen: dict[str, Any]) -> None:
    recipe, dataset = _copy_adapter(_merge_adapters(_anywhere(assembled.recipe), run), run), assembled.dataset
    run.recipe.write_text(dump(recipe), encoding="utf-8")
    run.write("plan.json", foreseen)
    run.write(
        "dataset.json",
        {
            "path": str(dataset.path.resolve()),
            "name": dataset.name,
            "hash": dataset.hash,
            "counts": dataset.manifest.get("counts", {}),
            "tokens": dataset.manifest.get("tokens", {}),
            "thoughts": dataset.thinks(),
        },
    )
    Journal(run.events).event("plan", seconds=foreseen["seconds"], memory_gb=foreseen["memory_gb"])


def inside(assembled: TrainingInput, run: Run) -> TrainingInput:
    """What was assembled, with the base and the adapter that `begin` has put into the run's folder."""
    recipe, folder = assembled.recipe, assembled.folder
    model, train = recipe.model, recipe.train
    if train.merge:
        folder = (run.path / BASE).resolve()
        model = model.model_copy(update={"name": str(folder), "revision": None})
    adapter = str((run.path / BEGUN).resolve()) if train.adapter else None
    train = train.model_copy(update={"merge": [], "adapter": adapter})
    recipe = recipe.model_copy(update={"model": model, "train": train})
    return replace(assembled, recipe=recipe, folder=folder, context=replace(assembled.context, train=train))


def _merge_adapters(recipe: Recipe, run: Run) -> Recipe:
    """The recipe on a base of the run's own, <run>/base: its model with adapters added into the weights that they were
    trained on, which a run of qlora has rounded. In the recipe it stands as ./base: the run may be moved."""
    if not recipe.train.merge:
        return recipe
    base, others = model_folder(recipe.model), [Path(m) for m in recipe.train.merge]
    bits = adapters.held_alike(others)
    model = load_model(base, recipe.model.dtype, quantized=bits)
    adapters.stacked(quantize.dequantized(model) if bits else model, base, others, run.path / BASE)
    run.write(
        "merged.json",
        {
            "base": recipe.model.name,
            "revision": recipe.model.revision,
            "adapters": recipe.train.merge,
            "into": BASE,
            "bits": bits.bits if bits else adapters.WHOLE,
        },
    )
    model_part = recipe.model.model_copy(update={"name": f"./{BASE}", "revision": None})
    train = recipe.train.model_copy(update={"merge": []})
    return recipe.model_copy(update={"model": model_part, "train": train})


def _copy_adapter(recipe: Recipe, run: Run) -> Recipe:
    """The recipe with a copy of the adapter it goes on from, <run>/begun: it outlives the run that it is from."""
    if not recipe.train.adapter:
        return recipe
    adapters.copied(Path(recipe.train.adapter), run.path / BEGUN)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"adapter": f"./{BEGUN}"})})


def _anywhere(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths: read from its run folder it means the same, wherever the reader stands."""
    recipe = anchored(recipe, Path.cwd())
    if not Path(recipe.model.name).is_dir():
        return recipe
    model = recipe.model.model_copy(update={"name": str(Path(recipe.model.name).resolve())})
    return recipe.model_copy(update={"model": model})
