"""What a proof trains: a tiny model drawn at random, and real questions and answers as rows of every kind."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tuneloop.data.templates import CHATML
from tuneloop.records import Kind

ROWS = 24
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def questions(count: int, longest: int = 10**6) -> list[tuple[str, str]]:
    """The first questions and answers of the demo's real data, of at most so many characters together."""
    with files("tuneloop").joinpath("recipes", "data", "general_en.csv").open(encoding="utf-8") as file:
        every = ((r["question"], r["answer"]) for r in csv.DictReader(file))
        return list(islice((row for row in every if len(row[0]) + len(row[1]) <= longest), count))


def rows(kind: Kind, count: int = ROWS, longest: int = 10**6) -> Iterator[dict[str, Any]]:
    """Rows of a kind, as they lie in files: the worse answer of a pair is another question's."""
    asked = questions(count, longest)
    for k, (question, answer) in enumerate(asked):
        other = asked[(k + 1) % len(asked)][1]
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


def model_folder(folder: Path) -> Path:
    """A random Llama of two layers, whose heads are as wide as graphics cards want them; a token a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={x: i for i, x in enumerate([*SPECIAL, *letters])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[2], pad_token=SPECIAL[0])
    made.add_special_tokens({"additional_special_tokens": [SPECIAL[1]]})
    made.chat_template = CHATML
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(made), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=2048, tie_word_embeddings=True,
        eos_token_id=made.eos_token_id, pad_token_id=made.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder
