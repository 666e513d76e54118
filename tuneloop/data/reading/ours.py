"""What tuneloop itself wrote below a folder that is read: datasets, runs, models and exports are no data.

They are known by what lies in them, not by their names: a person's own folder `datasets` is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

_MARKS = (
    ("manifest.json", "ledger.jsonl"),  # a dataset version
    ("recipe.yaml", "events.jsonl"),  # a run
    ("tuneloop.json", "config.json"),  # an export
    ("tuneloop.json", "adapter_config.json"),
)
_BLOB = re.compile(r"[0-9a-f]{64}")
_BESIDE = ("sources.json", "stamps.json")
_RECIPE = re.compile(rb"name: .*\r?\nseed: \d+\r?\nmodel:\r?\n")


def written(paths: Iterable[Path], base: Path) -> set[Path]:
    """Those of the files below `base` that tuneloop wrote. `base` itself was named, so it is not judged."""
    known: dict[Path, bool] = {base: False}

    def inside(folder: Path) -> bool:
        if folder not in known:
            known[folder] = folder != folder.parent and (_is_ours(folder) or inside(folder.parent))
        return known[folder]

    try:
        return {path for path in paths if inside(path.parent) or _is_file_of_ours(path)}
    finally:
        _is_named_set.cache_clear()


def _is_ours(folder: Path) -> bool:
    return any(all((folder / name).is_file() for name in marks) for marks in _MARKS)


def _is_file_of_ours(path: Path) -> bool:
    if path.name.startswith("tuneloop.db"):
        return True
    if path.parent.name == "sha256" and path.parent.parent.name == "blobs":
        return bool(_BLOB.fullmatch(path.name))
    if path.name in _BESIDE:
        return _is_named_set(path.parent)
    return path.suffix in (".yaml", ".yml") and _is_recipe(path)


@lru_cache(maxsize=64)
def _is_named_set(folder: Path) -> bool:
    """Whether versions of a dataset lie in a folder."""
    return any(_is_ours(inner) for inner in folder.iterdir() if inner.is_dir())


def _is_recipe(path: Path) -> bool:
    """Whether a file is a recipe as tuneloop writes it down."""
    try:
        with path.open("rb") as file:
            return bool(_RECIPE.match(file.read(4096)))
    except OSError:
        return False
