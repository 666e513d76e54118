"""What a verb is pointed at: a recipe file, the name of a recipe inside the package, or raw files and no recipe."""

from __future__ import annotations

import difflib
import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.cli.show import say
from tuneloop.errors import RecipeError
from tuneloop.language import t

if TYPE_CHECKING:
    from tuneloop.sections import Recipe


def packaged() -> dict[str, Path]:
    """Name -> file of each recipe inside the package."""
    folder = Path(str(files("tuneloop").joinpath("recipes")))
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))}


def recipe_of(
    targets: list[str], *, model: str = "", name: str = "", settings: list[str] | None = None, accept: bool = False
) -> Recipe:
    """The recipe a command line means, its --set assignments applied.

    For raw files a recipe is written beside the user (./<name>.yaml) to look at, keep and change.
    Raises TL-RECIPE-NAME for a word that is neither a file nor a packaged recipe, and what the recipe room raises.
    """
    from tuneloop import recipe as recipes

    assignments = list(settings or [])
    # A text in quotes: the values of assignments are YAML, and a name may look like a number there.
    if model:
        assignments.append(f"model.name={json.dumps(model, ensure_ascii=False)}")
    if name:
        assignments.append(f"name={json.dumps(name, ensure_ascii=False)}")
    if accept:
        assignments.append("model.accept_terms=true")
    first = Path(targets[0])
    known = packaged()
    if len(targets) == 1 and first.suffix.lower() in {".yaml", ".yml"}:
        recipe, notes = recipes.read_recipe(first)
    elif len(targets) == 1 and not first.exists() and targets[0] in known:
        recipe, notes = recipes.read_recipe(known[targets[0]])
    elif first.suffix or first.exists() or any(c in targets[0] for c in "*?["):
        return _written(targets, assignments)
    else:
        near = difflib.get_close_matches(targets[0], known, 1)
        raise RecipeError("TL-RECIPE-NAME", where=targets[0], known=", ".join(known), guess=near[0] if near else "demo")
    for note in notes:
        say(note)
    return recipes.changed(recipe, assignments) if assignments else recipe


def _written(targets: list[str], assignments: list[str]) -> Recipe:
    """A recipe for raw files, written to ./<name>.yaml unless that file is there already."""
    from tuneloop import recipe as recipes

    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(targets[0]).stem).strip("-_") or "run"
    recipe, _ = recipes.make_recipe({"name": stem[:64], "data": [str(Path(f).resolve()) for f in targets]})
    if assignments:
        recipe = recipes.changed(recipe, assignments)
    file = Path(f"{recipe.name}.yaml")
    if file.exists():
        say(t("{file} is there already and is not read: to run it, name it instead of the data.", file=file))
    elif all(Path(f).exists() or any(c in f for c in "*?[") for f in targets):
        file.write_text(recipes.dump(recipe), encoding="utf-8")
        say(t("Wrote the recipe to {file}: change it and run it again as you like.", file=file))
    return recipe
