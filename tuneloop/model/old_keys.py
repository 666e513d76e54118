"""The keys that transformers 4 reads, kept beside those that transformers 5 writes; and JSON that any locale can read.

transformers 5 writes rotary positions as `rope_parameters` alone: 4 (as many vLLM, llama.cpp and MLX installations have
it) then takes a base of 10,000 and no scaling, and answers wrongly without a word. It calls a tokenizer by a class that
4 has not, and writes a list of special tokens where 4 wants names. What a folder had before it was saved again is put
back, and the rest is derived; transformers 5 reads the folder as it did before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig

Json = dict[str, Any]

_ROPE = frozenset({"rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_emb_base", "rotary_pct",
                   "rope_local_base_freq", "global_rope_theta", "local_rope_theta"})  # fmt: skip
"""Keys of rotary positions in transformers 4: derived, never copied."""
_GONE = frozenset({"torch_dtype", "transformers_version", "_name_or_path", "name_or_path", "quantization_config",
                   "auto_map", "chat_template", "extra_special_tokens", "model_specific_special_tokens",
                   "tokenizer_class", "tokenizer_file", "special_tokens_map_file", "vocab_file",
                   "merges_file"})  # fmt: skip
_OURS = ("is_local", "local_files_only")
"""How transformers 5 has read a tokenizer here: nothing to tell others."""
"""Keys that a base's files may have and what is made of it must not: they are another's, or written anew."""
_NESTED = {
    "gemma3": ("rope_theta", "rope_local_base_freq"), "gemma3_text": ("rope_theta", "rope_local_base_freq"),
    "gemma3n": ("rope_theta", "rope_local_base_freq"), "gemma3n_text": ("rope_theta", "rope_local_base_freq"),
    "modernbert": ("global_rope_theta", "local_rope_theta"),
    "modernbert-decoder": ("global_rope_theta", "local_rope_theta"),
}  # fmt: skip
"""Model type -> what 4 calls the base of the layers that see everything, and of those that see a window."""
_NEOX = ("gpt_neox", "gpt_neox_japanese")


def keep_old_keys(folder: Path, base: Path) -> None:
    """Make what transformers 5 has saved in `folder` readable by 4 as well. `base` is the folder it was loaded from."""
    config = folder / "config.json"
    if config.is_file():
        ours, theirs = _read(config), _read(base / "config.json")
        full = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict()
        restored = {key: full.get(key, theirs[key]) for key in theirs.keys() - ours.keys() - _GONE - _ROPE}
        write_json(config, with_old_names(restored | ours))
    words = folder / "tokenizer_config.json"
    if words.is_file():
        template = folder / "chat_template.jinja"
        text = template.read_text(encoding="utf-8") if template.is_file() else None
        write_json(words, tokenizer_keys(_read(words), _read(base / "tokenizer_config.json"), text))
    for name in (
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "model.safetensors.index.json",
    ):
        if (folder / name).is_file():
            write_json(folder / name, _read(folder / name))


def with_old_names(config: Json) -> Json:
    """A config with the old names of its rotary positions and its type, in nested configs as well.

    >>> with_old_names({"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}})["rope_theta"]
    100000.0
    """
    out = {
        key: with_old_names(setting) if key.endswith("_config") and isinstance(setting, dict) else setting
        for key, setting in config.items()
    }
    if isinstance(out.get("dtype"), str):
        out["torch_dtype"] = out["dtype"]
    if "num_local_experts" in out:  # 5 has renamed it in Qwen3-MoE, and 4 would build 128 of them
        out.setdefault("num_experts", out["num_local_experts"])
    rope, kind = out.get("rope_parameters"), str(out.get("model_type", ""))
    if not isinstance(rope, dict) or not rope:
        return out
    if not any(isinstance(setting, dict) for setting in rope.values()):
        return out | _flat(rope, kind)
    if kind not in _NESTED:
        return out
    for name, layers in zip(_NESTED[kind], ("full_attention", "sliding_attention"), strict=True):
        if isinstance(rope.get(layers), dict) and rope[layers].get("rope_theta") is not None:
            out[name] = rope[layers]["rope_theta"]
    if kind.startswith("gemma") and isinstance(rope.get("full_attention"), dict):
        out |= {key: setting for key, setting in _flat(rope["full_attention"], kind).items() if key == "rope_scaling"}
    return out


def _flat(rope: Json, kind: str) -> Json:
    """One table of rotary positions under the names of transformers 4."""
    theta, part = ("rotary_emb_base", "rotary_pct") if kind in _NEOX else ("rope_theta", "partial_rotary_factor")
    out: Json = {theta: rope["rope_theta"]} if rope.get("rope_theta") is not None else {}
    if rope.get("partial_rotary_factor") is not None:
        out[part] = rope["partial_rotary_factor"]
    rest = {key: setting for key, setting in rope.items() if key not in {"rope_theta", "partial_rotary_factor"}}
    if rest.keys() - {"rope_type", "type"} or rest.get("rope_type", "default") != "default":
        out["rope_scaling"] = rest
    return out


def tokenizer_keys(config: Json, base: Json, template: str | None = None) -> Json:
    """A tokenizer's config as 4 and 5 read it. `base` is that of the tokenizer it was made from, {} for none.

    >>> tokenizer_keys({"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"]}, {})
    {'tokenizer_class': 'PreTrainedTokenizerFast', 'additional_special_tokens': ['<a>']}
    """
    out = {key: setting for key, setting in base.items() if key not in _GONE | {"additional_special_tokens"}} | config
    out = {key: setting for key, setting in out.items() if key not in _OURS}
    if str(out.get("tokenizer_class", "")).endswith("Backend"):
        own = "" if base.get("auto_map") else str(base.get("tokenizer_class") or "")
        out["tokenizer_class"] = own if own and not own.endswith("Backend") else "PreTrainedTokenizerFast"
    more, named = out.pop("extra_special_tokens", None), out.pop("model_specific_special_tokens", None)
    if isinstance(more, list):
        out["additional_special_tokens"] = more
    elif more or named:
        out["extra_special_tokens"] = {**(named or {}), **(more or {})}
    if named and isinstance(more, list):
        out["extra_special_tokens"] = named
    if template is not None and "chat_template" in base:  # older tools of the 4 line know no file for it
        out["chat_template"] = template
    return out


def write_json(path: Path, content: Json) -> None:
    r"""JSON in ASCII (\uXXXX), as PEFT and transformers write theirs: others read it in whatever encoding is theirs."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")


def _read(path: Path) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
