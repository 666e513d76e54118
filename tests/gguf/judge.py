"""llama.cpp's logits of a GGUF file, in a process of its own: it ends a process that asks for something impossible."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int8, c_int32, c_void_p
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuneloop.gguf.library import library


class Params(ctypes.Structure):
    """llama_model_params or llama_context_params as the library fills them: more bytes than either has."""

    _fields_ = (("content", ctypes.c_char * 512),)


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = (
        ("count", c_int32), ("token", POINTER(c_int32)), ("embd", c_void_p), ("pos", POINTER(c_int32)),
        ("sequences", POINTER(c_int32)), ("sequence", POINTER(POINTER(c_int32))), ("logits", POINTER(c_int8)),
    )  # fmt: skip


def logits(gguf: Path, ids: Sequence[int], adapter: Path | None = None) -> NDArray[np.float32]:
    """Float32 [len(ids), vocabulary], with llama.cpp's defaults; fails with llama.cpp's own words."""
    call = [sys.executable, "-m", "tests.gguf.judge", str(gguf), json.dumps(list(ids)), str(adapter or "")]
    run = subprocess.run(call, capture_output=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr.decode()[-3000:]
    return np.frombuffer(run.stdout, np.float32).reshape(len(ids), -1)


def _answer(gguf: str, ids: list[int], adapter: str) -> NDArray[np.float32]:
    lib = library()
    for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_adapter_lora_init",
                 "llama_model_get_vocab"):  # fmt: skip
        getattr(lib, name).restype = c_void_p
    for name in ("llama_model_default_params", "llama_context_default_params"):
        getattr(lib, name).restype = Params
    lib.llama_batch_init.restype, lib.llama_get_logits.restype = Batch, POINTER(c_float)
    lib.llama_backend_init()
    model = c_void_p(lib.llama_model_load_from_file(gguf.encode(), lib.llama_model_default_params()))
    assert model.value, "the model was not loaded"
    context = c_void_p(lib.llama_init_from_model(model, lib.llama_context_default_params()))
    if adapter:
        lora = c_void_p(lib.llama_adapter_lora_init(model, adapter.encode()))
        assert lora.value, "the adapter was not loaded"
        assert lib.llama_set_adapters_lora(context, ctypes.byref(lora), 1, ctypes.byref(c_float(1.0))) == 0
    batch = lib.llama_batch_init(len(ids), 0, 1)
    batch.count = len(ids)
    for place, token in enumerate(ids):
        batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
        batch.sequences[place], batch.sequence[place][0] = 1, 0
    assert lib.llama_decode(context, batch) == 0
    size = lib.llama_vocab_n_tokens(c_void_p(lib.llama_model_get_vocab(model)))
    return np.ctypeslib.as_array(lib.llama_get_logits(context), (len(ids), size)).copy()


if __name__ == "__main__":
    sys.stdout.buffer.write(_answer(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]).tobytes())
