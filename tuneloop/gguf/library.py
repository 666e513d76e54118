"""llama.cpp's own library, as the package xllamacpp brings it: writer of its formats and judge of what we write."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from tuneloop.base.optional import need


@functools.cache
def library() -> ctypes.CDLL:
    """llama.cpp as a C library (ggml_…, llama_… and gguf_… by their names in its headers).

    Raises TL-MACHINE-EXTRA where the extra `gguf` is not installed.
    """
    package = need("xllamacpp", extra="gguf")
    (shared,) = Path(str(package.__file__)).parent.glob("xllamacpp*.so")
    return ctypes.CDLL(str(shared))
