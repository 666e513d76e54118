"""A GGUF file to a model folder of safetensors and JSON, exactly: each weight is the value its block stands for.

Stored as float32: the value of a block is the product of a half-precision number and a small whole one, and 42 % of
SmolLM2's are no half-precision numbers themselves (79 % no bfloat16). Undone here is what llama.cpp's converter does to
a checkpoint: other names, the rows of Llama's q and k interleaved, 1 added to Gemma's norms.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.base.errors import ModelError
from tuneloop.base.language import t
from tuneloop.gguf.file import GgufFile
from tuneloop.gguf.tokenizer import write_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a GGUF architecture becomes one of transformers.

    `names` maps the part of a tensor's name after "blk.N." (or the whole name), without ".weight"; a bias keeps its
    suffix. `config` makes config.json; `undo` gives the checkpoint's numbers from the file's, by the part's name.
    """

    names: dict[str, str]
    config: Callable[[Facts], Facts]
    undo: Callable[[str, NDArray[np.float32], Facts], NDArray[np.float32]]


_COMMON = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
}


def convert(gguf: Path, folder: Path, generation: Facts | None = None) -> None:
    """Write the model in `gguf` to the existing `folder`: safetensors, config, generation config, tokenizer.

    Raises TL-MODEL-GGUF for what it cannot convert exactly.
    """
    with GgufFile(gguf) as file:
        facts = file.facts
        kind = str(facts.get("general.architecture"))
        if kind not in ARCHITECTURES:
            raise ModelError(
                "TL-MODEL-GGUF", where=str(gguf), error=t("its architecture {kind} is not known", kind=kind)
            )
        architecture = ARCHITECTURES[kind]
        config = architecture.config(facts) | {"tie_word_embeddings": "output.weight" not in file.tensors}
        parts = {}
        for name in file.tensors:
            target, part = rename(name, architecture.names, gguf)
            parts[target] = (name, part)
        write_tokenizer(facts, folder)

        def numbers(target: str) -> NDArray[np.float32]:
            name, part = parts[target]
            return architecture.undo(part, file.numbers(name), facts)

        shapes = {target: file.tensors[name].shape for target, (name, _) in parts.items()}
        _write_weights(folder / "model.safetensors", shapes, numbers)
    _write_json(folder / "config.json", config)
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    _write_json(folder / "generation_config.json", {k: config[k] for k in tokens} | (generation or {}))


def _write_weights(
    path: Path, shapes: dict[str, tuple[int, ...]], numbers: Callable[[str], NDArray[np.float32]]
) -> None:
    """One safetensors file of float32 tensors by name, written tensor by tensor: memory holds one at a time."""
    header: Facts = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(shapes.items()):
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of eight bytes
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(shapes):
            out.write(numbers(name).astype("<f4", order="C", copy=False).data)


def rename(name: str, names: dict[str, str], where: Path) -> tuple[str, str]:
    """(the tensor's name in transformers, its part name). Raises TL-MODEL-GGUF for a name that is not in `names`.

    >>> rename("blk.3.attn_q.weight", {"attn_q": "self_attn.q_proj"}, Path("m.gguf"))
    ('model.layers.3.self_attn.q_proj.weight', 'attn_q')
    >>> rename("blk.3.attn_q.bias", {"attn_q.bias": "self_attn.q_proj"}, Path("m.gguf"))
    ('model.layers.3.self_attn.q_proj.bias', 'attn_q.bias')
    """
    stem, _, suffix = name.rpartition(".")
    prefix = ""
    if stem.startswith("blk."):
        _, number, stem = stem.split(".", 2)
        prefix = f"model.layers.{number}."
    part = stem if suffix == "weight" else f"{stem}.{suffix}"
    if part not in names:
        raise ModelError("TL-MODEL-GGUF", where=str(where), error=t("its tensor {name} is not known", name=name))
    return f"{prefix}{names[part]}.{suffix}", part


def short(number: float) -> float:
    """A float32 as the decimal its writer meant: 9.999999747378752e-06 is 1e-05.

    >>> short(9.999999747378752e-06)
    1e-05
    """
    return float(f"{number:.6g}")


def _base_config(facts: Facts, prefix: str) -> Facts:
    return {
        "attention_dropout": 0.0,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "dtype": "float32",
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "hidden_size": facts[f"{prefix}.embedding_length"],
        "initializer_range": 0.02,
        "intermediate_size": facts[f"{prefix}.feed_forward_length"],
        "max_position_embeddings": facts[f"{prefix}.context_length"],
        "num_attention_heads": facts[f"{prefix}.attention.head_count"],
        "num_hidden_layers": facts[f"{prefix}.block_count"],
        "num_key_value_heads": facts[f"{prefix}.attention.head_count_kv"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": short(facts[f"{prefix}.attention.layer_norm_rms_epsilon"]),
        "rope_theta": short(facts[f"{prefix}.rope.freq_base"]),
        "use_cache": True,
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
    }


def _llama_config(facts: Facts) -> Facts:
    return _base_config(facts, "llama") | {
        "attention_bias": False,
        "architectures": ["LlamaForCausalLM"],
        "head_dim": facts["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "mlp_bias": False,
        "model_type": "llama",
    }


def _gemma3_config(facts: Facts) -> Facts:
    head = facts["gemma3.attention.key_length"]
    layers = range(1, facts["gemma3.block_count"] + 1)
    return _base_config(facts, "gemma3") | {
        "attention_bias": False,
        "architectures": ["Gemma3ForCausalLM"],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "head_dim": head,
        "hidden_activation": "gelu_pytorch_tanh",
        # Every Gemma 3 attends far in each sixth layer; llama.cpp has the six in code, not in the file.
        "layer_types": ["sliding_attention" if n % 6 else "full_attention" for n in layers],
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": head,
        "rope_local_base_freq": 10000.0,
        "sliding_window": facts["gemma3.attention.sliding_window"],
    }


def _qwen2_config(facts: Facts) -> Facts:
    return _base_config(facts, "qwen2") | {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "model_type": "qwen2",
        "use_sliding_window": False,
    }


def _undo_llama(part: str, numbers: NDArray[np.float32], facts: Facts) -> NDArray[np.float32]:
    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}.get(part)
    if heads is None:
        return numbers
    # llama.cpp turns pairs (i, i + 1), transformers halves (i, i + half): the rows of each head are dealt out.
    out, inside = numbers.shape
    dealt: NDArray[np.float32] = numbers.reshape(facts[heads], out // facts[heads] // 2, 2, inside).swapaxes(1, 2)
    return dealt.reshape(out, inside)


def _undo_gemma3(part: str, numbers: NDArray[np.float32], facts: Facts) -> NDArray[np.float32]:
    return numbers - 1 if part.endswith("norm") else numbers


def _undo_nothing(part: str, numbers: NDArray[np.float32], facts: Facts) -> NDArray[np.float32]:
    return numbers


ARCHITECTURES = {
    "llama": Architecture(_COMMON | {"ffn_norm": "post_attention_layernorm"}, _llama_config, _undo_llama),
    "gemma3": Architecture(
        _COMMON
        | {
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        _gemma3_config,
        _undo_gemma3,
    ),
    # Queries, keys and values have biases in every Qwen2; its rotary halves lie as transformers has them.
    "qwen2": Architecture(
        _COMMON | {"ffn_norm": "post_attention_layernorm"} | {f"attn_{x}.bias": f"self_attn.{x}_proj" for x in "qkv"},
        _qwen2_config,
        _undo_nothing,
    ),
}


def _write_json(path: Path, content: Facts) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
