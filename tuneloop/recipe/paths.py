"""Paths that a recipe names: found from the folder it lies in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuneloop.recipe.schema import AugmentPart, Recipe


def is_beside(name: str) -> bool:
    """Whether the name of a model or adapter is a path from the recipe's own folder: it begins with ./ or ../, or so
    with Windows' backslash."""
    return name.startswith(("./", "../", ".\\", "..\\"))


def anchored(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its file paths made absolute; globs, hub ids and lists of prompts stay as they are."""

    def fix(path: Any) -> Any:
        return str(folder / Path(path).expanduser()) if isinstance(path, str) else path

    part = recipe.evaluate
    evaluate = part.model_copy(
        update={
            "show": fix(part.show),
            "probes": [p.model_copy(update={"prompts": fix(p.prompts)}) for p in part.probes],
            "files": [f.model_copy(update={"path": fix(f.path)}) for f in part.files],
        }
    )
    elsewhere = ("hub:", "modelscope:")
    files = [
        d if d.path == "-" or d.path.startswith(elsewhere) else d.model_copy(update={"path": fix(d.path)})
        for d in recipe.data
    ]
    model = recipe.model
    if is_beside(model.name):
        model = model.model_copy(update={"name": str((folder / model.name).resolve())})
    if model.template and model.template.endswith(".jinja"):
        model = model.model_copy(update={"template": fix(model.template)})
    lists = [fix(path) for path in recipe.prepare.clean.lexicon_files]
    clean = recipe.prepare.clean.model_copy(update={"lexicon_files": lists})
    prepare = recipe.prepare.model_copy(update={"augment": _anchored(recipe.prepare.augment, folder), "clean": clean})
    named = {
        key: [str((folder / a).resolve()) if is_beside(a) else a for a in adapters]
        for key, adapters in (("adapter", filter(None, [recipe.train.adapter])), ("merge", recipe.train.merge))
    }
    train = recipe.train.model_copy(update={"adapter": next(iter(named["adapter"]), None), "merge": named["merge"]})
    keys = {name: fix(getattr(recipe.serve, name)) for name in ("key_file", "upstream_key_file")}
    safety = recipe.serve.safety
    policy = safety.policy if safety.policy in ("off", "default") else fix(safety.policy)
    safety = safety.model_copy(update={"policy": policy, "audit": fix(safety.audit)})
    serve = recipe.serve.model_copy(update={**keys, "safety": safety})
    notify = recipe.watch.notify
    notify = notify.model_copy(update={"file": fix(notify.file)})
    parts = {"data": files, "evaluate": evaluate, "model": model, "prepare": prepare, "train": train, "serve": serve}
    return recipe.model_copy(update={**parts, "watch": recipe.watch.model_copy(update={"notify": notify})})


def _anchored(part: AugmentPart, folder: Path) -> AugmentPart:
    table = part.synonyms_file
    models = [str((folder / m).resolve()) if is_beside(m) else m for m in part.translator]
    return part.model_copy(
        update={"synonyms_file": table and str(folder / Path(table).expanduser()), "translator": models}
    )
