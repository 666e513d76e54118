"""The engines by their names in the recipe (serve.engine)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tuneloop.recipe.serve import EngineName, ServePart
from tuneloop.serving.engine import Engine
from tuneloop.serving.llamacpp.gguf_engine import gguf_engine
from tuneloop.serving.upstream.proxy_engine import proxy_engine
from tuneloop.serving.upstream.vllm_engine import vllm_engine
from tuneloop.serving.worker.torch_engine import TorchEngine

ENGINES: dict[EngineName, Callable[[str | Path, ServePart, Path, Callable[[str], None]], Engine]] = {
    "torch": TorchEngine,
    "gguf": gguf_engine,
    "proxy": proxy_engine,
    "vllm": vllm_engine,
}
"""Name -> what makes the engine of a run, version or model: (it, settings, workspace, who hears what happens)."""
