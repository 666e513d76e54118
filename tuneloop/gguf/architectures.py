"""Model architectures as llama.cpp and transformers have them: names of tensors, what is done to numbers, configs.

One table for both directions: `convert` reads with it, `write` writes. What llama.cpp's converter does to a checkpoint
is: other names, the rows of Llama's q and k interleaved, 1 added to Gemma's norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuneloop.base.language import t

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a GGUF architecture becomes one of transformers, and the other way.

    `model` is its class in transformers. `names` maps the part of a tensor's name after "blk.N." (or all of it),
    without ".weight", to its module; a bias has its suffix. `config` makes config.json from a file's facts, `facts` the
    file's from a loaded config, and raises ValueError for what GGUF has no place for. `interleaved` are the parts whose
    rows llama.cpp has in another order, `norm_shift` is what it adds to norms.
    """

    model: str
    names: dict[str, str]
    config: Callable[[Facts], Facts]
    facts: Callable[[Any], Facts]
    interleaved: frozenset[str] = frozenset()
    norm_shift: int = 0

    def stored(self, part: str, numbers: NDArray[np.float32], head: int) -> NDArray[np.float32]:
        """A checkpoint's numbers as llama.cpp has them; `numbers` are rows of whole heads, of `head` rows each."""
        if part in self.interleaved:
            # llama.cpp turns pairs (i, i + 1), transformers halves (i, i + half): the rows of each head are shuffled.
            return numbers.reshape(-1, 2, head // 2, numbers.shape[-1]).swapaxes(1, 2).reshape(numbers.shape)
        return numbers + self.norm_shift if part.endswith("norm") and self.norm_shift else numbers

    def restored(self, part: str, numbers: NDArray[np.float32], head: int) -> NDArray[np.float32]:
        """The checkpoint's numbers from llama.cpp's: `stored` undone."""
        if part in self.interleaved:
            return numbers.reshape(-1, head // 2, 2, numbers.shape[-1]).swapaxes(1, 2).reshape(numbers.shape)
        return numbers - self.norm_shift if part.endswith("norm") and self.norm_shift else numbers


def head_size(facts: Facts) -> int:
    """Rows of a head's query, from a GGUF file's facts.

    >>> head_size({"general.architecture": "a", "a.embedding_length": 576, "a.attention.head_count": 9})
    64
    """
    kind = facts["general.architecture"]
    if (size := facts.get(f"{kind}.attention.key_length")) is not None:
        return int(size)
    return int(facts[f"{kind}.embedding_length"]) // int(facts[f"{kind}.attention.head_count"])


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
        **_scaling_config(facts, f"{prefix}.rope.scaling."),
    }


def _scaling_config(facts: Facts, prefix: str) -> Facts:
    """How rotary positions are stretched: `rope_scaling` read back."""
    if facts.get(f"{prefix}type", "none") == "none":
        return {}
    scaling: Facts = {"rope_type": facts[f"{prefix}type"], "factor": short(facts[f"{prefix}factor"])}
    if (length := facts.get(f"{prefix}original_context_length")) is not None:
        scaling["original_max_position_embeddings"] = length
    if (attention := facts.get(f"{prefix}attn_factor")) is not None:
        scaling["attention_factor"] = short(attention * yarn_attention(scaling["factor"]))
    return {"rope_scaling": scaling}


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
    return _base_config(facts, "gemma3") | {
        "attention_bias": False,
        "architectures": ["Gemma3ForCausalLM"],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "head_dim": head,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": _gemma3_layers(facts["gemma3.block_count"]),
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": head,
        "rope_local_base_freq": short(facts.get("gemma3.rope.freq_base_swa", 10000.0)),
        "sliding_window": facts["gemma3.attention.sliding_window"],
    }


def _gemma3_layers(count: int) -> list[str]:
    """Every Gemma 3 attends far in each sixth layer; llama.cpp has the six in code, not in the file."""
    return ["sliding_attention" if n % 6 else "full_attention" for n in range(1, count + 1)]


def _qwen2_config(facts: Facts) -> Facts:
    return _base_config(facts, "qwen2") | {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "model_type": "qwen2",
        "use_sliding_window": False,
    }


def _qwen3_config(facts: Facts) -> Facts:
    return _base_config(facts, "qwen3") | {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": head_size(facts),
        "hidden_act": "silu",
        "model_type": "qwen3",
        "use_sliding_window": False,
    }


def _base_facts(config: Any, prefix: str, rope: Facts) -> Facts:
    """Facts that every architecture has; `rope` are the rotary positions of the layers that see everything."""
    heads, head = config.num_attention_heads, getattr(config, "head_dim", None)
    _refuse(getattr(config, "quantization_config", None), t("its weights are quantised"))
    _refuse(rope.get("partial_rotary_factor", 1.0) != 1.0, t("only a part of each head has rotary positions"))
    return {
        f"{prefix}.block_count": config.num_hidden_layers,
        f"{prefix}.context_length": config.max_position_embeddings,
        f"{prefix}.embedding_length": config.hidden_size,
        f"{prefix}.feed_forward_length": config.intermediate_size,
        f"{prefix}.attention.head_count": heads,
        f"{prefix}.attention.head_count_kv": getattr(config, "num_key_value_heads", None) or heads,
        f"{prefix}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        **({f"{prefix}.attention.{name}_length": head for name in ("key", "value")} if head else {}),
        f"{prefix}.rope.freq_base": float(rope["rope_theta"]),
        **{f"{prefix}.rope.scaling.{name}": fact for name, fact in rope_scaling(rope).items()},
    }


def _require_rope(rope: Facts, *kinds: str) -> None:
    kind = rope.get("rope_type", "default")
    _refuse(kind not in kinds, t("its rotary positions are scaled by {kind}", kind=kind))


def _silu_facts(config: Any, prefix: str) -> Facts:
    _refuse(config.hidden_act != "silu", t("its activation is {name}", name=config.hidden_act))
    types = set(getattr(config, "layer_types", None) or ())
    _refuse(types - {"full_attention"}, t("some of its layers see a window only"))
    _require_rope(config.rope_parameters, "default", "linear", "yarn", *(["llama3"] if prefix == "llama" else []))
    return _base_facts(config, prefix, config.rope_parameters)


def _llama_facts(config: Any) -> Facts:
    facts = {"general.architecture": "llama"} | _silu_facts(config, "llama")
    return facts | {"llama.rope.dimension_count": head_size(facts), "llama.vocab_size": config.vocab_size}


def _gemma3_facts(config: Any) -> Facts:
    head, layers = config.head_dim, config.num_hidden_layers
    _refuse(
        config.hidden_activation != "gelu_pytorch_tanh", t("its activation is {name}", name=config.hidden_activation)
    )
    usual = list(config.layer_types) == _gemma3_layers(layers)
    _refuse(not usual, t("its layers do not attend far in each sixth, and only there"))
    # llama.cpp knows the one Gemma 3 that divides otherwise, 27B, by its number of layers.
    scalar = config.hidden_size // config.num_attention_heads if layers == 62 else head
    _refuse(
        config.query_pre_attn_scalar != scalar,
        t("its queries are divided by the root of {scalar}", scalar=config.query_pre_attn_scalar),
    )
    _refuse(config.attn_logit_softcapping or config.final_logit_softcapping, t("its logits are capped"))
    _refuse(config.attention_bias, t("its attention has biases"))
    _refuse(getattr(config, "use_bidirectional_attention", False), t("its tokens see those behind them"))
    local, full = (config.rope_parameters[layers] for layers in ("sliding_attention", "full_attention"))
    _require_rope(local, "default")
    _require_rope(full, "default", "linear")
    return _base_facts(config, "gemma3", full) | {
        "gemma3.attention.sliding_window": config.sliding_window,
        "gemma3.rope.freq_base_swa": float(local["rope_theta"]),
    }


def _refuse(condition: object, reason: str) -> None:
    if condition:
        raise ValueError(reason)


def rope_scaling(rope: Facts) -> Facts:
    """How rotary positions are stretched, as a GGUF names it; {} where they are not, or by `rope_freqs.weight` instead.

    Raises ValueError for a way that GGUF does not have.

    >>> rope_scaling({"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6})
    {'type': 'linear', 'factor': 8.0}
    """
    kind = rope.get("rope_type", "default")
    if kind in ("default", "llama3"):
        return {}
    if kind == "linear":
        return {"type": "linear", "factor": float(rope["factor"])}
    # Of YaRN's settings llama.cpp reads those below for these architectures, and has the usual ones of the others.
    usual = {"beta_fast": (None, 32), "beta_slow": (None, 1), "truncate": (None, True)}
    if kind != "yarn" or not rope.get("factor") or any(rope.get(name) not in known for name, known in usual.items()):
        raise ValueError(t("its rotary positions are scaled by {kind}", kind=kind))
    facts: Facts = {
        "type": "yarn",
        "factor": float(rope["factor"]),
        "original_context_length": int(rope["original_max_position_embeddings"]),
    }
    expected = yarn_attention(facts["factor"])
    if not math.isclose(attention := _yarn_attention(rope), expected):
        facts["attn_factor"] = attention / expected  # llama.cpp multiplies its own by it
    return facts


def yarn_attention(factor: float, scale: float = 1.0) -> float:
    """What YaRN multiplies queries and keys by (arXiv:2309.00071, section 3.4).

    >>> round(yarn_attention(4.0), 4)
    1.1386
    """
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_attention(rope: Facts) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return yarn_attention(rope["factor"], rope["mscale"]) / yarn_attention(rope["factor"], rope["mscale_all_dim"])
    return yarn_attention(rope["factor"])


def rope_divisors(config: Any) -> NDArray[np.float32] | None:
    """What Llama 3 divides the frequencies of its rotary positions by, float32 [half a head]; None for any other model.

    llama.cpp has it as the tensor `rope_freqs.weight`.
    """
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return None
    import numpy as np
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].numpy()
    steps = np.arange(0, 2 * len(frequencies), 2, dtype=np.float32) / np.float32(2 * len(frequencies))
    divisors: NDArray[np.float32] = (1.0 / np.float32(rope["rope_theta"]) ** steps / frequencies).astype(np.float32)
    return divisors


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
_NORM = {"ffn_norm": "post_attention_layernorm"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_QKV_BIASES = {f"attn_{x}.bias": f"self_attn.{x}_proj" for x in "qkv"}

ARCHITECTURES = {
    "llama": Architecture(
        "LlamaForCausalLM",
        _COMMON | _NORM,
        _llama_config,
        _llama_facts,
        interleaved=frozenset({"attn_q", "attn_k"}),
    ),
    "gemma3": Architecture(
        "Gemma3ForCausalLM",
        _COMMON
        | _HEAD_NORMS
        | {
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        _gemma3_config,
        _gemma3_facts,
        norm_shift=1,
    ),
    # Queries, keys and values have biases in every Qwen2; its rotary halves lie as transformers has them.
    "qwen2": Architecture(
        "Qwen2ForCausalLM",
        _COMMON | _NORM | _QKV_BIASES,
        _qwen2_config,
        lambda config: _silu_facts(config, "qwen2"),
    ),
    "qwen3": Architecture(
        "Qwen3ForCausalLM",
        _COMMON | _NORM | _HEAD_NORMS,
        _qwen3_config,
        lambda config: _silu_facts(config, "qwen3"),
    ),
}
"""GGUF's name of an architecture -> how it is read and written."""


def architecture_of(model: str) -> str | None:
    """GGUF's name of the architecture that a class of transformers is; None for one that is not written here.

    >>> architecture_of("Qwen3ForCausalLM"), architecture_of("LlamaForSequenceClassification")
    ('qwen3', None)
    """
    return next((name for name, one in ARCHITECTURES.items() if one.model == model), None)
