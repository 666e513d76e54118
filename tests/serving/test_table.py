from __future__ import annotations

from typing import get_args

from tuneloop.recipe.serve import EngineName
from tuneloop.serving.table import ENGINES


def test_every_engine_of_the_recipe_is_there() -> None:
    assert tuple(ENGINES) == get_args(EngineName)
