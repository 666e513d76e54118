"""The part of llama.cpp's C interface that is used here, by ctypes: structs as llama.h declares them, and signatures.

The layout is that of the llama.cpp inside xllamacpp 2026.10.11549 (llama.cpp 0.6.0). Another release may move a field,
and a moved field is read without any error; so `llama_cpp` compares the defaults that the library gives with `DEFAULTS`
and refuses a library whose layout is not this one.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from typing import Any

from tuneloop.gguf.library import library

F32_CACHE, NO_FLASH_ATTENTION, FROM_MODEL = 0, 0, 0
"""GGML_TYPE_F32, LLAMA_FLASH_ATTN_TYPE_DISABLED, and 0 as llama.cpp reads it: "take it from the model"."""


class ModelParams(ctypes.Structure):
    """llama_model_params: how a file is loaded."""

    _fields_ = [
        ("devices", c_void_p), ("tensor_buft_overrides", c_void_p), ("n_gpu_layers", c_int32), ("split_mode", c_int),
        ("load_mode", c_int), ("lazy_mode", c_int), ("main_gpu", c_int32), ("tensor_split", c_void_p),
        ("progress_callback", c_void_p), ("progress_callback_user_data", c_void_p), ("kv_overrides", c_void_p),
        ("vocab_only", c_bool), ("check_tensors", c_bool), ("use_extra_bufts", c_bool), ("no_host", c_bool),
        ("no_alloc", c_bool), ("load_mtp", c_bool),
    ]  # fmt: skip


class ContextParams(ctypes.Structure):
    """llama_context_params: how a loaded model computes."""

    _fields_ = [
        ("n_ctx", c_uint32), ("n_batch", c_uint32), ("n_ubatch", c_uint32), ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32), ("n_outputs_max", c_uint32), ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32), ("n_threads_batch", c_int32), ("ctx_type", c_int), ("rope_scaling_type", c_int),
        ("pooling_type", c_int), ("attention_type", c_int), ("flash_attn_type", c_int), ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float), ("yarn_ext_factor", c_float), ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float), ("yarn_beta_slow", c_float), ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float), ("cb_eval", c_void_p), ("cb_eval_user_data", c_void_p), ("type_k", c_int),
        ("type_v", c_int), ("abort_callback", c_void_p), ("abort_callback_data", c_void_p),
        ("moe_cache_size", c_size_t), ("embeddings", c_bool), ("offload_kqv", c_bool), ("no_perf", c_bool),
        ("op_offload", c_bool), ("swa_full", c_bool), ("kv_unified", c_bool), ("samplers", c_void_p),
        ("n_samplers", c_size_t), ("ctx_other", c_void_p),
    ]  # fmt: skip


class TokenBatch(ctypes.Structure):
    """llama_batch: tokens of one forward pass."""

    _fields_ = [
        ("n_tokens", c_int32), ("token", POINTER(c_int32)), ("embd", POINTER(c_float)), ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)), ("seq_id", POINTER(POINTER(c_int32))), ("logits", POINTER(c_int8)),
    ]  # fmt: skip


DEFAULTS: dict[type[ctypes.Structure], dict[str, Any]] = {
    ModelParams: {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "use_extra_bufts": True},
    ContextParams: {
        "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max_per_seq": 1, "n_threads": 4,
        "n_threads_batch": 4, "rope_scaling_type": -1, "pooling_type": -1, "attention_type": -1, "flash_attn_type": -1,
        "yarn_ext_factor": -1.0, "yarn_attn_factor": -1.0, "yarn_beta_fast": -1.0, "yarn_beta_slow": -1.0,
        "defrag_thold": -1.0, "type_k": 1, "type_v": 1, "offload_kqv": True, "no_perf": True, "op_offload": True,
        "swa_full": True,
    },
}  # fmt: skip
"""What the library gives where nothing is asked for; fields that are not named are 0. Nearly every one differs from its
neighbours, so a field that was added, taken away or moved shows."""

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_adapter_lora_init": (c_void_p, [c_void_p, c_char_p]),
    "llama_set_adapters_lora": (c_int32, [c_void_p, POINTER(c_void_p), c_size_t, POINTER(c_float)]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_meta_count": (c_int32, [c_void_p]),
    "llama_model_meta_key_by_index": (c_int32, [c_void_p, c_int32, c_char_p, c_size_t]),
    "llama_model_meta_val_str_by_index": (c_int32, [c_void_p, c_int32, c_char_p, c_size_t]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
    "llama_detokenize": (c_int32, [c_void_p, POINTER(c_int32), c_int32, c_char_p, c_int32, c_bool, c_bool]),
    "llama_n_ctx": (c_uint32, [c_void_p]),
    "llama_n_batch": (c_uint32, [c_void_p]),
    "llama_n_threads": (c_int32, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_batch_init": (TokenBatch, [c_int32, c_int32, c_int32]),
    "llama_decode": (c_int32, [c_void_p, TokenBatch]),
    "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
}


def differences(given: ctypes.Structure) -> list[str]:
    """The fields of default parameters that are not what `DEFAULTS` has, each as "name=number"; [] where all are.

    >>> differences(ModelParams(n_gpu_layers=-1, split_mode=1, load_mode=-1, lazy_mode=0, use_extra_bufts=True))
    ['lazy_mode=0']
    """
    expected = DEFAULTS[type(given)]
    fields = [(str(field[0]), getattr(given, field[0]) or 0) for field in type(given)._fields_]
    return [f"{name}={number}" for name, number in fields if number != expected.get(name, 0)]


def llama_cpp() -> ctypes.CDLL:
    """The library with signatures set. Raises ValueError where its structs are not those of this file."""
    shared = library()
    for name, (result_type, arguments) in _SIGNATURES.items():
        function = getattr(shared, name)
        function.restype, function.argtypes = result_type, arguments
    if moved := [
        *differences(shared.llama_model_default_params()),
        *differences(shared.llama_context_default_params()),
    ]:
        raise ValueError(f"another layout than that of xllamacpp 2026.10.11549: {', '.join(moved)}")
    return shared
