"""Tiny random models as folders: each architecture that is written as GGUF, with one byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.gguf.test_tokenizer import byte_level_facts
from tuneloop.gguf.tokenizer import write_tokenizer

FACTS = byte_level_facts()
WORDS = {name: fact for name, fact in FACTS.items() if name.startswith("tokenizer.")}
SIZE = {
    "vocab_size": len(FACTS["tokenizer.ggml.tokens"]), "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
KINDS = ("llama", "qwen2", "qwen3", "gemma3")


def model(kind: str, **settings: Any) -> Any:
    """A model of random weights, its norms and biases away from 1 and 0."""
    import transformers as tr

    torch.manual_seed(0)
    classes: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "llama": (tr.LlamaConfig, tr.LlamaForCausalLM, {"tie_word_embeddings": True}),
        "qwen2": (tr.Qwen2Config, tr.Qwen2ForCausalLM, {"tie_word_embeddings": False}),
        "qwen3": (tr.Qwen3Config, tr.Qwen3ForCausalLM, {"tie_word_embeddings": True, "head_dim": 128}),
        "gemma3": (
            tr.Gemma3TextConfig,
            tr.Gemma3ForCausalLM,
            {"num_hidden_layers": 7, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8},
        ),
    }
    config, build, own = classes[kind]
    made_model = build(config(**SIZE | own | settings)).eval()
    with torch.no_grad():
        for name, weight in made_model.named_parameters():
            if weight.ndim == 1:
                weight += 0.2 * torch.randn_like(weight)
            elif "embed" not in name:
                weight *= 3  # attention that looks somewhere, so that a wrong order of rows shows
    return made_model


def save(model: Any, folder: Path, **settings: Any) -> Path:
    """The model's folder with its tokenizer."""
    model.save_pretrained(folder, **settings)
    write_tokenizer(FACTS, folder)
    return folder
