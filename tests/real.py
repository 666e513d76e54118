"""Rows of the shared data sets, read as a recipe would read them; models and tokenizers that are pulled by name."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tuneloop.base.errors import TuneloopError
from tuneloop.base.records import Kind, Record
from tuneloop.data.reading import formats
from tuneloop.data.tokens.templates import choose_template
from tuneloop.hub.resolve import pull
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


def pulled(name: str) -> Path:
    """The folder of a model or tokenizer; a test is skipped where it cannot be had, but fails in CI."""
    try:
        return pull(name)
    except TuneloopError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"{name} is not here and cannot be pulled: {error.what}")


def pulled_tokenizer(name: str) -> Any:
    """A tokenizer with a chat template, whether it came with one or not."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pulled(name), local_files_only=True)
    choose_template(tokenizer, None)
    return tokenizer
