"""Shared fixtures: a tiny random Llama with a ChatML tokenizer, and runs made with it by the real pipeline."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random 2-layer Llama (float32) and a byte-level BPE tokenizer with a ChatML template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from tuneloop.data.templates import CHATML

    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator([text for pair in TALK for text in pair] + ["system user assistant"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
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
    from tuneloop.recipe import make_recipe

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
    from tuneloop import language

    language.use("en")
    yield
    language.use("en")
