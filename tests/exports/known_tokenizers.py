"""Tokenizers of every family that a Modelfile can be written for: pulled ones, and small ones with a family's template."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import pytest

from tests import chat_templates
from tests.conftest import byte_tokenizer
from tuneloop.base.environment import environment
from tuneloop.data.tokens.templates import DEFAULTS
from tuneloop.inference.tokenizer import load_tokenizer

PULLED = {
    "smollm2-135m-instruct": "ChatML", "qwen3-tokenizer": "ChatML", "deepseek-v3-tokenizer": "DeepSeek-R1",
}  # fmt: skip
OWN = {"chatml": "ChatML", "chatml-think": "ChatML", "gemma": "Gemma", "plain": "plain", "plain-think": "plain"}
PUBLISHED = {
    "llama3": "Llama 3", "llama3.1": "Llama 3", "gemma2": "Gemma", "gemma3": "Gemma", "deepseek-r1": "DeepSeek-R1",
    "qwen2": "ChatML", "qwen2.5": "ChatML",
}  # fmt: skip
NAMES = PULLED | OWN | PUBLISHED
"""A tokenizer -> the family that its template is of."""


@cache
def load(name: str) -> Any:
    """A tokenizer by its name in NAMES; skips where it is to be pulled and is not here, but fails in CI."""
    if name in PUBLISHED:
        return chat_templates.tokenizer(name)
    if name in OWN:
        return byte_tokenizer(DEFAULTS[name], special=("<s>", "</s>"), bos_token="<s>", eos_token="</s>")
    folder = environment().home / "models" / name
    if not (folder / "tokenizer.json").is_file():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{folder.name} is missing in CI")
        pytest.skip(f"tuneloop model pull {folder.name}")
    return load_tokenizer(folder)
