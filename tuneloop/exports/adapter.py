"""An adapter by itself, in PEFT's layout as vLLM loads it, and why an adapter is none that vLLM loads.

vLLM's rules are in its vllm/lora: peft_helper.py (the config), lora_model.py and utils.py (names of tensors and
modules), and the models' own classes (which parts are adapted).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tuneloop.base.language import listed, t
from tuneloop.exports.merge import generation_config
from tuneloop.exports.reference import Reference
from tuneloop.methods import adapters
from tuneloop.model.old_keys import keep_old_keys, write_json

_LINEAR = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
VLLM_MODULES: dict[str, frozenset[str]] = {
    "llama": _LINEAR | {"embed_tokens", "lm_head"},
    "mistral": _LINEAR | {"embed_tokens", "lm_head"},
    "qwen2": _LINEAR,
    "qwen3": _LINEAR,
    "gemma": _LINEAR,
    "gemma2": _LINEAR,
    "gemma3_text": _LINEAR,
    "granite": _LINEAR,
    "phi3": frozenset({"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
}
"""Model type -> last names of the modules that vLLM adapts in it."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank can be; 16 where it is not given."""
_UNREAD = ("use_dora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication",
           "trainable_token_indices", "alora_invocation_tokens", "use_qalora", "arrow_config")  # fmt: skip
"""Keys of adapter_config.json that vLLM refuses, or leaves unread and so computes something else."""
_BASE_TENSORS = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
"""Ends of names that PEFT saves beside an adapter of embeddings, and vLLM skips."""
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+?)\.(lora_[AB]\.weight|lora_embedding_[AB])")


def vllm_refusal(adapter: Path, model_type: str) -> str:
    """Why vLLM would not load the adapter folder on a model of this type, or would compute something else; "" if it
    loads it. Raises what `adapters.read_config` raises."""
    config = adapters.read_config(adapter)
    if config["peft_type"] != "LORA" or config.get("task_type") not in ("CAUSAL_LM", None):
        return t(
            "vLLM loads LoRA adapters of models that write, and this is {kind} for {task}",
            kind=config["peft_type"],
            task=config.get("task_type"),
        )
    if config.get("bias", "none") != "none":
        return t("vLLM loads no biases of adapters")
    if keys := [key for key in _UNREAD if config.get(key)]:
        return t("vLLM does not support {keys} of an adapter", keys=listed(keys))
    if max_rank(config) is None:
        return t("its rank is {rank}, and vLLM's limit is {most}", rank=config["r"], most=VLLM_RANKS[-1])
    if model_type not in VLLM_MODULES:
        return t("which parts vLLM adapts in a model of the type {kind} is not known here", kind=model_type)
    with safe_open(adapter / adapters.WEIGHTS, "pt") as tensors:
        names = [name for name in tensors.keys() if not name.endswith(_BASE_TENSORS)]  # noqa: SIM118 - no dict
    if odd := [name for name in names if not _TENSOR.fullmatch(name)]:
        return t("vLLM does not know what {name} is", name=odd[0])
    modules = {str(match["module"]).rsplit(".", 1)[-1] for name in names if (match := _TENSOR.fullmatch(name))}
    if foreign := sorted(modules - VLLM_MODULES[model_type]):
        return t("vLLM does not adapt {names} in a model of the type {kind}", names=listed(foreign), kind=model_type)
    return ""


def max_rank(config: dict[str, Any]) -> int | None:
    """The --max-lora-rank that vLLM needs for an adapter; None where none is enough.

    >>> max_rank({"r": 8}), max_rank({"r": 24}), max_rank({"r": 513})
    (8, 32, None)
    """
    return next((rank for rank in VLLM_RANKS if rank >= int(config["r"])), None)


def copy_adapter(reference: Reference, folder: Path) -> None:
    """Write the run's adapter to the new folder: weights, config, tokenizer, chat template, generation config.

    A digest of the base's weights lies beside it (base.json).
    """
    (adapter,) = reference.parts.adapters
    folder.mkdir()
    for name in (adapters.CONFIG, adapters.WEIGHTS, adapters.BASE):
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, folder / name)
    # What the base is called elsewhere: a folder of this machine says nothing to others.
    named = {"base_model_name_or_path": reference.parts.base_name}
    write_json(folder / adapters.CONFIG, adapters.read_config(folder) | named)
    generation_config(reference, folder)
    reference.tokenizer.save_pretrained(folder)
    keep_old_keys(folder, reference.parts.base)
