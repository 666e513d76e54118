"""What a run's model is composed of, on the disk: base weights, and the adapters that are added to them in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneloop.base.errors import RunError
from tuneloop.hub.provenance import base_name, provenance_note
from tuneloop.hub.resolve import model_folder
from tuneloop.methods import adapters
from tuneloop.methods.table import METHODS
from tuneloop.methods.wrap import bits_of
from tuneloop.recipe.schema import QloraPart, Recipe
from tuneloop.runs.run import Run, run_recipe
from tuneloop.tasks.table import TASKS, task_name
from tuneloop.tasks.task import Task
from tuneloop.training.digests import weights_digest


@dataclass(frozen=True, slots=True)
class Composition:
    """The parts of a run's model. `weights` is the base's folder, or the run's own where training changed all of it."""

    run: Path
    recipe: Recipe
    task: Task
    base: Path
    weights: Path
    adapters: tuple[Path, ...]
    """Adapter folders in the order in which they are added: the run's own, then those that were named beside it."""
    more: tuple[Path, ...]
    """Those of them that were named beside the run's own."""
    bits: QloraPart | None
    """How the base was held while the adapters were trained; None for weights as they are."""

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def base_name(self) -> str:
        """What the base is called elsewhere."""
        return base_name(self.recipe, self.base)


@dataclass(frozen=True, slots=True)
class AddedAdapter:
    """An adapter that was added beside the run's own, as others can know it again: no path of this machine."""

    name: str
    """Of the run that made it, or of its folder."""
    weights: str
    """12 hex digits of its weights."""


def added_adapters(parts: Composition) -> list[AddedAdapter]:
    """Those that were named beside the run's own, in order."""
    return [
        AddedAdapter((folder.parent if folder.name == "adapter" else folder).name, weights_digest(folder))
        for folder in parts.more
    ]


def composition(run: Path, more: Sequence[Path] = ()) -> Composition:
    """The parts of a finished run's model, `more` adapters on top. No weight is read but for the base's digest.

    Raises TL-RUN-MISSING, TL-RUN-UNFINISHED, TL-RUN-UNMERGEABLE for adapters beside one that cannot be added,
    TL-RUN-OTHER-BASE, and TL-MODEL-METHOD for adapters that were trained on weights held in different ways.
    """
    if not (run / "recipe.yaml").is_file():
        raise RunError("TL-RUN-MISSING", where=str(run), path=run)
    recipe, trained = run_recipe(run), Run(run).trained_folder()
    if trained is None:
        raise RunError("TL-RUN-UNFINISHED", where=str(run), path=run)
    method, base = METHODS[recipe.train.method], model_folder(recipe.model)
    if more and method.adapter and not method.mergeable:
        raise RunError("TL-RUN-UNMERGEABLE", where=str(run), method=recipe.train.method)
    own = (trained,) if method.adapter else ()
    weights = base if method.adapter else trained
    for adapter in (*own, *more):
        require_base(adapter, weights, base_name(recipe, base))
    bits = bits_of(recipe.train)
    for adapter in more:
        kind = str(adapters.read_config(adapter)["peft_type"])
        if kind != "LORA":
            raise RunError("TL-RUN-UNMERGEABLE", where=str(adapter), method=kind)
        adapters.require_same_bits(adapter, bits, recipe.train.method, "--adapter")
    task = TASKS[task_name(recipe.train.task, ())]
    return Composition(run, recipe, task, base, weights, (*own, *more), tuple(more), bits)


def require_base(adapter: Path, weights: Path, named: str) -> None:
    """Raise TL-RUN-OTHER-BASE where an adapter's recorded digest of its base is not that of the folder `weights`."""
    recorded = adapters.known_base(adapter).get("mark")
    there = provenance_note(weights)
    if recorded is not None and recorded != there:
        raise RunError("TL-RUN-OTHER-BASE", where=str(adapter), base=named, then=recorded or "-", now=there or "-")
