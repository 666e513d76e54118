"""In which type float32 matrices are multiplied on a CPU.

Processors with matrix units (AMX) multiply bfloat16 several times as fast as float32. oneDNN rounds the factors as it
reads them and adds up in float32; weights, activations, gradients and the optimizer stay float32. On a GPU this is what
TF32 is, with 8 bits of mantissa instead of 11.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

MatmulPrecision = Literal["float32", "bfloat16"]


def matrix_units() -> bool:
    """Whether this processor multiplies bfloat16 in units of its own (AMX), and oneDNN is there to use them."""
    return bool(torch.backends.mkldnn.is_available() and torch.cpu._is_amx_tile_supported())


def bfloat16_units() -> bool:
    """Whether this processor multiplies bfloat16 weights faster than float32 ones: AMX, or AVX-512's instructions."""
    return bool(
        torch.backends.mkldnn.is_available()
        and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    )


def chosen(wanted: str, *, exact: bool = False) -> MatmulPrecision:
    """What `train.matmul` means here. `exact` where a loss compares two nearly equal numbers: never less by itself."""
    if wanted == "auto":
        return "bfloat16" if matrix_units() and not exact else "float32"
    return "bfloat16" if wanted == "bfloat16" else "float32"


@contextmanager
def matmul_precision(kind: MatmulPrecision) -> Iterator[None]:
    """Inside, float32 matrices are multiplied in this type."""
    settings: Any = torch.backends.mkldnn
    before = settings.matmul.fp32_precision
    settings.matmul.fp32_precision = "bf16" if kind == "bfloat16" else "ieee"
    try:
        yield
    finally:
        settings.matmul.fp32_precision = before
