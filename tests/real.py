"""Rows of the shared data sets, read as a recipe would read them."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

from tuneloop.base.records import Kind, Record
from tuneloop.data.reading import formats
from tuneloop.recipe.schema import DataFile

TASKS: dict[str, Kind] = {"llamafactory/kto_en_demo.json": "judged"}
"""What a person says of a file: turns beside a `label` of true and false."""
DATA = Path(__file__).parents[2] / "shared" / "data"


def shared(name: str) -> Path:
    """The path of a shared file; a test is skipped where there is none, but fails in CI."""
    path = DATA / name
    if not path.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{path} is missing in CI")
        pytest.skip("../shared/data is not here")
    return path


@cache
def load(name: str) -> list[Record]:
    """The good rows of a shared file."""
    file = DataFile(path=str(shared(name)), task=TASKS.get(name))
    return [item for item in formats.read(file) if isinstance(item, Record)]
