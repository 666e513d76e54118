"""What a verb is pointed at: a recipe file or the name of a recipe inside the package, and raw files for it; or raw
files and no recipe."""

from __future__ import annotations

import difflib
import json
import os
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.cli.show import say
from tuneloop.errors import RecipeError, os_words
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
    """The recipe a command line means, its --set assignments applied. Files behind a recipe stand in place of its data.

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
    known = packaged()
    if recipe_file := _recipe_file(targets[0]):
        recipe, notes = recipes.read_recipe(recipe_file)
        if targets[1:]:
            assignments.insert(0, f"data={json.dumps(targets[1:], ensure_ascii=False)}")
    elif is_data(targets):
        recipe, notes = _made(targets), []
    else:
        near = difflib.get_close_matches(targets[0], known, 1)
        raise RecipeError("TL-RECIPE-NAME", where=targets[0], known=", ".join(known), guess=near[0] if near else "demo")
    if assignments:
        recipe, more = recipes.changed_and_told(recipe, assignments)
        notes += more
    for note in notes:
        say(note)
    return recipes.anchored(recipe, Path.cwd())


def _recipe_file(word: str) -> Path | None:
    """The recipe that a word means: a YAML file, or the name of a packaged one that no file or folder here has."""
    path = Path(word)
    if path.suffix.lower() in {".yaml", ".yml"}:
        return None if path.is_dir() else path
    return None if path.exists() else packaged().get(word)


def is_data(targets: list[str]) -> bool:
    """Do the words mean raw data, and no recipe?"""
    first = targets[0]
    if _recipe_file(first):
        return False
    named = first == "-" or first.startswith(("hub:", "modelscope:")) or any(c in first for c in "*?[")
    return named or bool(Path(first).suffix) or Path(first).exists()


def _made(targets: list[str]) -> Recipe:
    """A recipe for raw files, called as the first of them."""
    from tuneloop import recipe as recipes

    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(targets[0]).stem).strip("-_") or "run"
    return recipes.make_recipe({"name": stem[:64], "data": targets})[0]


def keep_recipe(targets: list[str], recipe: Recipe) -> None:
    """For raw files that could be read: write their recipe to ./<name>.yaml, to look at, keep and change.

    A file that is there already stays as it is; that is said where it holds another recipe.
    """
    from tuneloop import recipe as recipes

    if not is_data(targets):
        return
    file = Path(f"{recipe.name}.yaml")
    text = recipes.dump(_beside(recipe))
    if not file.exists():
        try:
            _write(file, text)
        except (OSError, UnicodeEncodeError) as error:  # a folder that is not ours: the rows are prepared all the same
            say(t("The recipe was not kept in {file}: {error}.", file=file, error=os_words(error)))
            return
        say(t("Wrote the recipe to {file}; change it as you like, and run it with: tuneloop run {file}", file=file))
    elif file.read_text(encoding="utf-8", errors="replace") != text:
        say(t("{file} holds another recipe; it was not used, and stays as it is. Delete it for a fresh one, or run it "
              "with: tuneloop run {file}", file=file))  # fmt: skip


def _write(file: Path, text: str) -> None:
    draft = file.with_name(f".{file.name}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, file)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _beside(recipe: Recipe) -> Recipe:
    """The recipe with the paths below this folder written from here, so that recipe and data can move together."""

    def near(path: str) -> str:
        return path.removeprefix(str(Path.cwd()) + os.sep) if Path(path).is_absolute() else path

    data = [file.model_copy(update={"path": Path(near(file.path)).as_posix()}) for file in recipe.data]
    return recipe.model_copy(update={"data": data})
