"""What a verb is pointed at: a recipe file or the name of a recipe inside the package, and raw files for it; or raw
files and no recipe."""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import re
from importlib.resources import files
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from tuneloop.base.errors import RecipeError, nearest_path, os_words
from tuneloop.base.files import write_atomic
from tuneloop.base.language import listed, t
from tuneloop.cli.show import command, say

if TYPE_CHECKING:
    from tuneloop.recipe.schema import Recipe


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
    from tuneloop.recipe.overrides import changed_with_notes
    from tuneloop.recipe.paths import anchored
    from tuneloop.recipe.recipe import read_recipe

    assignments = list(settings or [])
    # A text in quotes: the values of assignments are YAML, and a name may look like a number there.
    if model:
        assignments.append(f"model.name={json.dumps(model, ensure_ascii=False)}")
    if name:
        assignments.append(f"name={json.dumps(name, ensure_ascii=False)}")
    if accept:
        assignments.append("model.accept_terms=true")
    for word in targets:
        if key := _setting(word):
            raise RecipeError("TL-RECIPE-ASSIGN", where=word, got=word, guess=key)
    known = packaged()
    if recipe_file := _recipe_file(targets[0]):
        recipe, notes = read_recipe(recipe_file)
        if targets[1:]:
            assignments.insert(0, f"data={json.dumps(targets[1:], ensure_ascii=False)}")
    elif is_data(targets):
        recipe, notes = _bare_recipe(targets), []
    else:
        near = difflib.get_close_matches(targets[0], known, 1) or [nearest_path(targets[0]) or "demo"]
        raise RecipeError("TL-RECIPE-NAME", where=targets[0], known=listed(known), guess=near[0])
    if assignments:
        recipe, more = changed_with_notes(recipe, assignments)
        notes += more
    for note in notes:
        say(note)
    return anchored(recipe, Path.cwd())


def _setting(word: str) -> str:
    """The key of the recipe that a word "key=value" means, which wants --set before it; "" for any other word."""
    from tuneloop.recipe.recipe import nearest

    key, sign, _ = word.partition("=")
    return nearest(key) if sign and re.fullmatch(r"[\w.\[\]-]+", key) and not os.path.lexists(word) else ""


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
    named = first == "-" or first.startswith(("hub:", "modelscope:")) or any(c in first for c in ("*", "?", "[", "!/"))
    return named or bool(Path(first).suffix) or Path(first).exists()


def _bare_recipe(targets: list[str]) -> Recipe:
    """A recipe for raw files, called as the first of them."""
    from tuneloop.recipe.recipe import make_recipe

    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(targets[0]).stem).strip("-_") or "run"
    return make_recipe({"name": stem[:64], "data": targets})[0]


def require_files(recipe: Recipe) -> None:
    """Raise TL-DATA-MISSING, TL-MODEL-PATH, TL-MODEL-NAME, TL-MACHINE-EXTRA or what `addresses` raises, for what a
    recipe names and that is not there.

    What a verb does first: it needs no large library, so a misspelt path is told at once and not after seconds.
    """
    from tuneloop.base.errors import DataError, ModelError, nearby
    from tuneloop.base.optional import need
    from tuneloop.hub import known, resolve
    from tuneloop.monitor.notify import addresses

    for file in recipe.data:
        if not file.path.startswith(("hub:", "modelscope:", "-")) and not os.path.lexists(
            os.path.expanduser(file.path)
        ):
            from tuneloop.data.reading import places

            places.find(file)  # it may be a glob, a slice, a side of a folder
    evaluate, model = recipe.evaluate, recipe.model
    texts = [evaluate.show, *(probe.prompts for probe in evaluate.probes)]
    texts.append(model.template if model.template and model.template.endswith(".jinja") else [])
    for path in texts:
        if isinstance(path, str) and not os.path.lexists(path):
            raise DataError("TL-DATA-MISSING", where=path, near=nearby(path))
    for name in recipe.watch.trackers:
        if importlib.util.find_spec(name) is None:
            need(name, extra=name)
    if recipe.watch.notify.file is not None:
        addresses(Path(recipe.watch.notify.file))
    if os.path.isdir(os.path.expanduser(model.name)) or known.find(model.name):
        return
    if resolve.is_path(model.name):
        raise ModelError("TL-MODEL-PATH", where=model.name, name=model.name, near=nearby(model.name))
    if "/" not in model.name:
        raise known.unknown(model.name)


def keep_recipe(targets: list[str], recipe: Recipe) -> None:
    """For raw files that could be read: write their recipe to ./<name>.yaml, to look at, keep and change.

    A file that is there already stays as it is; that is said where it holds another recipe.
    """
    from tuneloop.recipe.recipe import dump

    if not is_data(targets):
        return
    file = Path(f"{recipe.name}.yaml")
    text = dump(_beside(recipe))
    if not file.exists():
        try:
            write_atomic(file, text)
        except (OSError, UnicodeEncodeError) as error:  # a folder that is not ours: the rows are prepared all the same
            say(t("The recipe was not kept in {file}: {error}.", file=file, error=os_words(error)))
            return
        say(
            t(
                "Wrote the recipe to {file}; change it as you like, and run it with: {command}",
                file=file,
                command=command("run", file),
            )
        )
    elif file.read_text(encoding="utf-8", errors="replace") != text:
        say(
            t(
                "{file} holds another recipe; it was not used, and stays as it is. Delete it for a fresh one, or run "
                "it with: {command}",
                file=file,
                command=command("run", file),
            )
        )


def _beside(recipe: Recipe) -> Recipe:
    """The recipe with the paths below this folder written from here, so that recipe and data can move together."""
    files = [file.model_copy(update={"path": below(Path(file.path), Path.cwd())}) for file in recipe.data]
    return recipe.model_copy(update={"data": files})


def below(path: PurePath, folder: PurePath) -> str:
    """A path as it is written in a file of `folder`, with slashes, which Windows reads as well.

    >>> below(PurePath("/work/chats/a.jsonl"), PurePath("/work"))
    'chats/a.jsonl'
    """
    inside = path.is_absolute() and path.is_relative_to(folder)
    return (path.relative_to(folder) if inside else path).as_posix()
