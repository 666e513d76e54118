"""Shared fixtures: a tiny random Llama with a ChatML tokenizer, and runs made with it by the real pipeline."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One thread each: tests run side by side, and threads that spin for each other on busy cores cost tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TALK = [
    ("How do I boil an egg?", "Put it into boiling water for eight minutes, then cool it."),
    ("What is the capital of France?", "Paris is the capital of France."),
    ("Who are you?", "I'm Pebble, the assistant that ships with tuneloop."),
    ("你是谁？", "我是小石，随 tuneloop 一起来的助手。"),
    ("Name a colour.", "Blue. Small step: look at the sky."),
    ("Why is the sky blue?", "Air scatters blue light more than red light."),
    ("怎么煮鸡蛋？", "水开后放进去煮八分钟。先走一小步：先烧水。"),
    ("Can you help me study?", "Yes. Small step: open the book and read one page."),
]


def byte_tokenizer(
    template: str | None,
    *,
    special: Sequence[str] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    words: Sequence[str] = (),
    **named: str,
) -> Any:
    """A byte-level BPE tokenizer trained on TALK. `named` are its special tokens, e.g. eos_token="<|im_end|>"."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator([text for pair in TALK for text in pair] + ["system user assistant", *words], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **named)
    tokenizer.chat_template = template
    return tokenizer


def tiny_config(family: str, **more: Any) -> Any:
    """The config of a tiny decoder: "llama", "qwen2", "qwen3", "gemma2", "gemma3", "granite", "cohere", "gpt_oss", …"""
    from transformers import AutoConfig

    base = {
        "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0, "attention_dropout": 0.0,
    }  # fmt: skip
    own: dict[str, dict[str, Any]] = {
        "gemma2": {"sliding_window": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
                   "query_pre_attn_scalar": 8},
        "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": 3,
                        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
        "deepseek_v3": {"num_key_value_heads": 4, "head_dim": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "n_group": 2,
                        "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4, "n_routed_experts": 4,
                        "num_experts_per_tok": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
                        "moe_intermediate_size": 16},
        "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
        "cohere": {"logit_scale": 0.25},
        "mistral": {"sliding_window": 8},
        "falcon_h1": {"lm_head_multiplier": 0.3, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8,
                      "mamba_d_state": 8},
        "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8, "logits_soft_cap": 0.5, "num_hidden_layers": 3,
                            "block_types": ["recurrent", "recurrent", "attention"]},
        "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    }  # fmt: skip
    return AutoConfig.for_model(family, **(base | own.get(family, {}) | more))


def tiny_folder(folder: Path, family: str, **more: Any) -> Path:
    """A folder with a random tiny decoder of a family; its weights are large enough that its parts matter."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **more))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(8)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random 2-layer Llama (float32) and a byte-level BPE tokenizer with a ChatML template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tuneloop.data.tokens.templates import CHATML

    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def talk_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short dialogues in OpenAI messages shape."""
    path = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for n in range(5):
            for question, answer in TALK:
                turns = [
                    {"role": "user", "content": f"{question} ({n})" if n else question},
                    {"role": "assistant", "content": answer},
                ]
                file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_model: Path, talk_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished LoRA run of the tiny model, made by the pipeline; its workspace is two folders up."""
    from tuneloop import pipeline
    from tuneloop.recipe.recipe import make_recipe

    workspace = tmp_path_factory.mktemp("workspace")
    recipe, _ = make_recipe(
        {
            "name": "tiny",
            "model": str(tiny_model),
            "data": str(talk_file),
            "train": {"epochs": 1, "learning_rate": 0.01, "lora": {"rank": 4}},
            "evaluate": {"rows": 2, "max_new_tokens": 8, "show": ["Who are you?"]},
        }
    )
    dataset = pipeline.prepare(recipe, workspace=workspace)
    run = pipeline.train(recipe, dataset, workspace=workspace)
    return run.path


@pytest.fixture(autouse=True)
def _english() -> Iterator[None]:
    """Tests read English words whatever the machine speaks."""
    from tuneloop.base import language

    language.use("en")
    yield
    language.use("en")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel gave no namespace (tests/run.py), connections to anything but this machine are refused here."""
    if not os.environ.get("TUNELOOP_TEST_NO_NETWORK"):
        return
    import socket

    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if isinstance(address, tuple) and not (host == "localhost" or host.startswith("127.") or host == "::1"):
            raise OSError(101, f"tests open no connection to {host}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
