"""Load tokenizers, and tell by 12 digits whether two make the same of a text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import (
    AutoTokenizer,
)

from tuneloop.base.errors import ModelError
from tuneloop.base.files import sha256_of
from tuneloop.data.tokens.templates import choose_template
from tuneloop.model.quiet import quiet


def fingerprint(folder: Path, tokenizer: Any) -> str:
    """12 hex digits of all that decides how text becomes tokens: the tokenizer's files and its chat template."""
    digest = hashlib.sha256(json.dumps(tokenizer.chat_template, sort_keys=True).encode())
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (folder / name).is_file():
            digest.update(name.encode() + sha256_of(folder / name).encode())
    return digest.hexdigest()[:12]


def load_tokenizer(folder: Path, template: str | None = None) -> Any:
    """The tokenizer of a model folder, with a chat template whatever the folder has.

    Raises TL-MODEL-TOKENIZER when the folder's files make none.
    """
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises no other class
        raise ModelError("TL-MODEL-TOKENIZER", where=str(folder), error=" ".join(str(error).split())[:200]) from error
    choose_template(tokenizer, template)
    return tokenizer
