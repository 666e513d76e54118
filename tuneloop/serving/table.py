"""The engines by their names in the recipe (serve.engine)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tuneloop.recipe.schema import EngineName
from tuneloop.serving.engine import Engine
from tuneloop.serving.torch_engine import TorchEngine

if TYPE_CHECKING:
    from tuneloop.inference.classifier import Classifier
    from tuneloop.inference.generate import Answerer
    from tuneloop.inference.scorer import Scorer

ENGINES: dict[EngineName, Callable[[Answerer | Classifier | Scorer], Engine]] = {"torch": TorchEngine}
