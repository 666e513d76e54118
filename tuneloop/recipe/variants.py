"""The variants of a recipe that compares: each is a recipe of its own, on the same rows."""

from __future__ import annotations

from tuneloop.base.errors import RecipeError
from tuneloop.recipe.overrides import changed
from tuneloop.recipe.schema import ComparePart, Recipe
from tuneloop.recipe.yaml import dumps


def variants(recipe: Recipe) -> dict[str, Recipe]:
    """Name -> recipe of each variant: as `recipe`, but for what the variant has otherwise in `train`.

    Raises TL-RECIPE-INVALID for a variant that is no valid recipe.

    >>> from tuneloop.recipe.recipe import make_recipe
    >>> both = {"compare": {"variants": {"small": {"lora": {"rank": 4}}, "whole": {"method": "full"}}}}
    >>> {name: (one.train.method, one.train.lora.rank) for name, one in variants(make_recipe(both)[0]).items()}
    {'small': ('lora', 4), 'whole': ('full', 8)}
    """
    alone = recipe.model_copy(update={"compare": ComparePart()})
    out = {}
    for name, keys in recipe.compare.variants.items():
        assignments = [f"train.{key}={dumps(setting).strip()}" for key, setting in _flat(keys)]
        try:
            out[name] = changed(alone, assignments)
        except RecipeError as error:
            raise RecipeError(
                error.code, where=f"compare.variants.{name}", causes=error.causes, **error.facts
            ) from error
    return out


def _flat(keys: dict[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """(dotted key, setting) of a section."""
    every: list[tuple[str, object]] = []
    for key, setting in keys.items():
        every += _flat(setting, f"{prefix}{key}.") if isinstance(setting, dict) else [(f"{prefix}{key}", setting)]
    return every
