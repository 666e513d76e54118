"""Numbers packed as a ggml type: half and single precision here, blocks of a few bits by llama.cpp's own quantiser."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tuneloop.base.language import t
from tuneloop.gguf.library import library

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LEAST = 1 << 16
"""Numbers that a thread takes at least: below, threads cost more than they bring."""


def quantized(numbers: NDArray[np.float32], kind: str) -> NDArray[np.uint8]:
    """Float32 [rows, columns] as bytes [rows, bytes of a row] in a ggml type; columns divide into its blocks.

    Exactly what llama.cpp writes: each row is rounded alone, so threads change nothing. Raises ValueError for numbers
    that are not finite, or too large for the type, and TL-MACHINE-EXTRA for blocks without the extra `gguf`.
    """
    import numpy as np
    import torch

    if not np.isfinite(numbers).all():
        raise ValueError(t("some of its numbers are not finite"))
    rows = len(numbers)
    if kind == "F32":
        return np.ascontiguousarray(numbers, dtype="<f4").view(np.uint8).reshape(rows, -1)
    if kind in ("F16", "BF16"):
        halves = torch.from_numpy(numbers).to(torch.float16 if kind == "F16" else torch.bfloat16)
        if not bool(halves.isfinite().all()):
            raise ValueError(t("some of its numbers are too large for {kind}", kind=kind))
        packed: NDArray[np.uint8] = halves.view(torch.uint8).numpy().reshape(rows, -1)
        return packed
    return _blocks(np.ascontiguousarray(numbers), kind)


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row in a ggml type.

    >>> row_bytes("Q4_K", 512), row_bytes("F16", 3)
    (288, 6)
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return columns // block * int(size)


def _blocks(numbers: NDArray[np.float32], kind: str) -> NDArray[np.uint8]:
    import numpy as np
    from gguf.constants import GGMLQuantizationType

    code, (rows, columns) = int(GGMLQuantizationType[kind]), numbers.shape
    packed = np.empty((rows, row_bytes(kind, columns)), dtype=np.uint8)
    chunk, ok = _functions()
    share = max(_LEAST // columns, -(-rows // (os.cpu_count() or 1)), 1)

    def run(first: int) -> None:  # ctypes lets the interpreter go: threads really run side by side
        count = min(share, rows - first)
        chunk(code, numbers.ctypes.data, packed.ctypes.data, first * columns, count, columns, None)

    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        list(threads.map(run, range(0, rows, share)))
    if not ok(code, packed.ctypes.data, packed.nbytes):
        raise ValueError(t("some of its numbers are too large for {kind}", kind=kind))
    return packed


def _functions() -> tuple[ctypes._NamedFuncPointer, ctypes._NamedFuncPointer]:
    """ggml_quantize_chunk and ggml_validate_row_data, with the types of their arguments."""
    chunk, ok = library().ggml_quantize_chunk, library().ggml_validate_row_data
    number, address = ctypes.c_int64, ctypes.c_void_p
    chunk.argtypes, chunk.restype = [ctypes.c_int, address, address, number, number, number, address], ctypes.c_size_t
    ok.argtypes, ok.restype = [ctypes.c_int, address, ctypes.c_size_t], ctypes.c_bool
    return chunk, ok
