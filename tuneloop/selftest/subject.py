"""What a proof trains: models drawn at random, and real questions and answers as rows of every kind."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tuneloop.base.records import Kind
from tuneloop.data.tokens.templates import CHATML

ROWS = 24
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "qwen3": {},
    "gemma3_text": {"sliding_window": 64, "query_pre_attn_scalar": 32,
                    "layer_types": ["sliding_attention", "full_attention"]},
    "deepseek_v3": {"num_key_value_heads": 4, "head_dim": 32, "q_lora_rank": 64, "kv_lora_rank": 32,
                    "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32, "n_routed_experts": 4,
                    "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
                    "n_shared_experts": 1, "moe_intermediate_size": 64},
}  # fmt: skip
"""The shapes, and what is their own beside that of a small Llama."""
QWEN2_1_5B = {
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 32768,
}  # fmt: skip
"""What Qwen2-1.5B's config.json says."""


def questions(count: int, longest: int = 10**6) -> list[tuple[str, str]]:
    """The first questions and answers of the demo's real data, of at most so many characters together."""
    with files("tuneloop").joinpath("recipes", "data", "general_en.csv").open(encoding="utf-8") as file:
        every = ((r["question"], r["answer"]) for r in csv.DictReader(file))
        return list(islice((row for row in every if len(row[0]) + len(row[1]) <= longest), count))


def rows(kind: Kind, count: int = ROWS, longest: int = 10**6) -> Iterator[dict[str, Any]]:
    """Rows of a kind, as they lie in files: the worse answer of a pair is another question's."""
    pairs = questions(count, longest)
    for k, (question, answer) in enumerate(pairs):
        other = pairs[(k + 1) % len(pairs)][1]
        user = {"role": "user", "content": question}
        label = "yes" if k % 2 else "no"
        every: dict[Kind, dict[str, Any]] = {
            "chat": {"messages": [user, {"role": "assistant", "content": answer}]},
            "text": {"text": f"{question}\n{answer}"},
            "label": {"text": question, "label": label},
            "preference": {"prompt": question, "chosen": answer, "rejected": other},
            "judged": {
                "messages": [user, {"role": "assistant", "content": answer if k % 2 else other}], "label": bool(k % 2),
            },
        }  # fmt: skip
        yield every[kind]


def row_file(folder: Path, kind: Kind, count: int = ROWS, longest: int = 10**6) -> Path:
    """The rows of a kind as a JSON Lines file."""
    path = folder / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(kind, count, longest)), encoding="utf-8")
    return path


def _tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and ChatML."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={x: i for i, x in enumerate([*SPECIAL, *letters])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[2], pad_token=SPECIAL[0])
    wrapped.add_special_tokens({"additional_special_tokens": [SPECIAL[1]]})
    wrapped.chat_template = CHATML
    return wrapped


def model_folder(
    folder: Path, family: str = "llama", *, device: str = "cpu", dtype: torch.dtype = torch.float32, **shape: Any
) -> Path:
    """A random model of two layers, whose heads are as wide as graphics cards want them; a token a byte.

    `shape` overrides what the family's tiny one is; it is drawn on `device` in `dtype`.
    """
    tokenizer = _tokenizer()
    tiny = {
        "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 2048,
        "tie_word_embeddings": True, "attention_dropout": 0.0, "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    config = AutoConfig.for_model(family, **(tiny | FAMILIES[family] | shape))
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def long_rows(count: int, longest: int) -> Iterator[dict[str, Any]]:
    """Dialogues of mixed lengths up to `longest` tokens (bytes), most of them short, as chats are: answers strung
    together from the real ones."""
    draw = random.Random(0)
    answers = [answer for _, answer in questions(200)]
    for k in range(count):
        size = longest if k % 8 == 0 else int(longest * draw.betavariate(1.2, 2))
        text = " ".join(draw.choice(answers) for _ in range(1 + size // 60)).encode()[: max(40, size - 60)]
        answer = text.decode("utf-8", "ignore").strip()
        yield {
            "messages": [{"role": "user", "content": f"Tell me more, {k}."}, {"role": "assistant", "content": answer}]
        }
