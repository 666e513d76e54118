"""The engines by their names in the recipe (serve.engine)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tuneloop.recipe.schema import EngineName, ServePart
from tuneloop.serving.engine import Engine
from tuneloop.serving.torch_engine import TorchEngine

ENGINES: dict[EngineName, Callable[[str | Path, ServePart, Path, Callable[[str], None]], Engine]] = {
    "torch": TorchEngine,
}
"""Name -> what makes the engine of a run, version or model: (it, settings, workspace, who hears what happens)."""
