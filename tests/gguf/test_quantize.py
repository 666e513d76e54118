from __future__ import annotations

import ctypes

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from tuneloop.gguf.library import library
from tuneloop.gguf.quantize import quantized, row_bytes


@pytest.fixture(scope="module")
def numbers() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 0.05, size=(700, 512)).astype(np.float32)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_0", "Q5_1"])
def test_blocks_are_those_of_the_gguf_package(kind: str, numbers: NDArray[np.float32]) -> None:
    assert np.array_equal(quantized(numbers, kind), quantize(numbers, GGMLQuantizationType[kind]))


@pytest.mark.parametrize(("kind", "most"), [("Q4_K", 0.09), ("Q5_K", 0.045), ("Q6_K", 0.022)])
def test_blocks_of_256_stand_for_the_numbers(kind: str, most: float, numbers: NDArray[np.float32]) -> None:
    packed = quantized(numbers, kind)
    assert packed.shape == (700, row_bytes(kind, 512))
    error = dequantize(packed, GGMLQuantizationType[kind]) - numbers
    assert 0 < np.sqrt((error**2).mean()) / numbers.std() < most


def test_a_row_is_rounded_alone(numbers: NDArray[np.float32]) -> None:
    both_halves = np.concatenate([quantized(numbers[:333], "Q4_K"), quantized(numbers[333:], "Q4_K")])
    assert np.array_equal(quantized(numbers, "Q4_K"), both_halves)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_halves_are_rounded_as_ggml_does(kind: str, numbers: NDArray[np.float32]) -> None:
    rounding = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-24, 2.0**-25, 6e-8, 1 + 2.0**-8, 1e-38, 65504, -0.0])
    more = np.concatenate([numbers.ravel(), rounding.astype(np.float32)])[None]
    size = {"F32": 4, "F16": 2, "BF16": 2}[kind]
    theirs = np.empty(more.size * size, np.uint8)
    chunk = library().ggml_quantize_chunk
    chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    chunk(int(GGMLQuantizationType[kind]), more.ctypes.data, theirs.ctypes.data, 0, 1, more.size, None)
    assert np.array_equal(quantized(more, kind)[0], theirs)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_K"])
def test_what_is_not_finite_is_refused(kind: str, numbers: NDArray[np.float32]) -> None:
    for bad in (np.nan, np.inf):
        spoilt = numbers.copy()
        spoilt[3, 5] = bad
        with pytest.raises(ValueError, match="not finite"):
            quantized(spoilt, kind)


@pytest.mark.parametrize(("kind", "large"), [("F16", 7e4), ("BF16", 3.4e38), ("Q8_0", 1e7), ("Q4_K", 1e9)])
def test_what_is_too_large_is_refused(kind: str, large: float, numbers: NDArray[np.float32]) -> None:
    spoilt = numbers.copy()
    spoilt[3, 5] = large
    with pytest.raises(ValueError, match=f"too large for {kind}"):
        quantized(spoilt, kind)
