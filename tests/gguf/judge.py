"""llama.cpp's logits of a GGUF file, read back by the package's own child process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuneloop.gguf.llamacpp import LlamaCpp


def logits(gguf: Path, ids: Sequence[int], adapter: Path | None = None) -> NDArray[np.float32]:
    """Float32 [len(ids), vocabulary]; raises TL-MODEL-LLAMACPP with llama.cpp's own words."""
    with LlamaCpp(gguf, adapters=[adapter] if adapter else [], context=max(256, len(ids))) as llama:
        return llama.logits(ids, range(len(ids)))
