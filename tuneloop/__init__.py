"""tuneloop: raw conversations -> a fine-tuned language model that is measured, exported, served and watched.

    import tuneloop
    recipe = tuneloop.read_recipe("recipe.yaml")
    dataset = tuneloop.prepare(recipe)
    run = tuneloop.train(recipe, dataset)
    tuneloop.evaluate(run)
    tuneloop.load(run.path).answer([[{"role": "user", "content": "Who are you?"}]])

The names are imported when they are first used, so `import tuneloop` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tuneloop.base.environment import quiet_libraries

if TYPE_CHECKING:
    from tuneloop.base.errors import TuneloopError
    from tuneloop.pipeline import (
        evaluate,
        export,
        improve,
        load,
        plan,
        predict,
        prepare,
        register,
        resume,
        serve,
        train,
    )
    from tuneloop.recipe.recipe import make_recipe, read_recipe
    from tuneloop.recipe.schema import Recipe

__version__ = "0.1.0"

_ROOM = {
    "TuneloopError": "base.errors",
    "Recipe": "recipe.schema",
    "make_recipe": "recipe.recipe",
    "read_recipe": "recipe.recipe",
    "evaluate": "pipeline",
    "export": "pipeline",
    "improve": "pipeline",
    "load": "pipeline",
    "plan": "pipeline",
    "predict": "pipeline",
    "prepare": "pipeline",
    "register": "pipeline",
    "resume": "pipeline",
    "serve": "pipeline",
    "train": "pipeline",
}

__all__ = [
    "Recipe",
    "TuneloopError",
    "__version__",
    "evaluate",
    "export",
    "improve",
    "load",
    "make_recipe",
    "plan",
    "predict",
    "prepare",
    "read_recipe",
    "register",
    "resume",
    "serve",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tuneloop.{_ROOM[name]}"), name)


def __dir__() -> list[str]:
    return __all__


quiet_libraries()  # before anybody imports torch through us
