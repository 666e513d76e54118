"""What a server goes by: the section `serve` of a run's recipe, and the key in its key file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tuneloop.base.errors import ServeError, os_words
from tuneloop.base.language import t
from tuneloop.recipe.serve import ServePart
from tuneloop.registry import versions
from tuneloop.runs.run import run_recipe


def serve_settings(ref: str | Path, workspace: Path) -> ServePart:
    """The section of the run or version that `ref` means; the defaults for a model, which has no recipe."""
    run = versions.locate(workspace, str(ref))
    return ServePart() if run is None else run_recipe(run).serve


FIXED = frozenset({
    "engine", "max_new_tokens", "slots", "cache_tokens", "chunk", "watchdog", "adapter_memory", "upstreams",
    "upstream_key_file", "vllm_command", "log", "cors", "drain", "batches",
})  # fmt: skip
"""Settings that the engine and the application are made by; all others are read anew at SIGHUP."""


def config_settings(config: Path) -> ServePart:
    """The section `serve` of a recipe. Raises what reading a recipe raises."""
    from tuneloop.recipe.recipe import read_recipe

    return read_recipe(config)[0].serve


def fixed_changes(before: ServePart, now: ServePart) -> list[str]:
    """Which settings differ that only a restart changes.

    >>> fixed_changes(ServePart(), ServePart(queue=3, slots=2))
    ['slots']
    """
    return sorted(name for name in FIXED if getattr(before, name) != getattr(now, name))


def served_name(ref: str | Path) -> str:
    """What the model that is served is called: a path means its folder or file.

    >>> served_name("shop:production"), served_name("/")
    ('shop:production', '')
    """
    return Path(ref).name if Path(ref).exists() else str(ref)


def read_key(path: Path) -> str:
    """The key that a file holds: one word. Raises TL-SERVE-KEY-FILE where it is missing, empty or something else."""
    try:
        key = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServeError("TL-SERVE-KEY-FILE", where=str(path), error=os_words(error)) from error
    if not key or len(key.split()) > 1:
        raise ServeError("TL-SERVE-KEY-FILE", where=str(path), error=t("one word is expected"))
    return key


def open_to_others(path: Path) -> bool:
    """Whether every user of this machine may read the file; False on Windows, whose rights its mode does not show."""
    return os.name == "posix" and bool(path.stat().st_mode & stat.S_IROTH)
