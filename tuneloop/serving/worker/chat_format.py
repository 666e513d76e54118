"""How the model of one name is spoken with: its tokenizer and template, its system prompt, its tokens as text."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from tuneloop.inference.generate import Answerer
from tuneloop.inference.text_stream import Decode, decoding
from tuneloop.inference.token_bytes import TokenBytes
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.old_keys import keep_old_keys
from tuneloop.serving.answers.call_formats import THOUGHT, markers

TOKENIZER_FILES = ("*token*.json", "vocab*", "merges.txt", "*.model", "*.tiktoken", "*.jinja")
PROMPT_TAIL = 16
"""Tokens at the end of a prompt in which the beginning of a thought is looked for."""


class Tokens:
    """A tokenizer as several threads use it: a copy that makes tokens of prompts, under `lock`, and one that makes text
    of answers. A fast tokenizer must not be used by two threads at once."""

    def __init__(self, tokenizer: Any) -> None:
        self.answers = tokenizer
        self.prompts = copy.deepcopy(tokenizer)
        self.lock = threading.Lock()
        self.octets = TokenBytes(tokenizer)
        self.template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
        self.before_texts = [n for n in tokenizer("")["input_ids"] if n == tokenizer.bos_token_id]
        """What the tokenizer puts before a text that is to be continued."""
        self._special = frozenset(tokenizer.all_special_ids)
        shown = {
            tools: [text for text in markers(self.template) if tools or text in THOUGHT] for tools in (False, True)
        }
        vocabulary = tokenizer.get_vocab()
        self._shown = {tools: {vocabulary.get(text) for text in texts} for tools, texts in shown.items()}
        """Tokens that an answer is taken apart by, without tools and with them."""

    def decoding_prompt(self) -> Decode:
        """Tokens of a prompt -> its text, special tokens written out. For those who hold the lock."""
        return decoding(self.prompts, special=True)

    def decoding_alone(self) -> Decode:
        """Tokens of an answer -> text without special tokens."""
        return decoding(self.answers)

    def decoding(self, tools: bool) -> Decode:
        """Tokens of an answer -> text without special tokens, but with those that it is taken apart by."""
        seen = self._shown[tools] & self._special
        if not seen:
            return decoding(self.answers)
        unseen, decode = self._special - seen, decoding(self.answers, special=True)
        return lambda tokens: decode([token for token in tokens if token not in unseen])


class ChatFormat:
    """A tokenizer with the system prompt and the answer prefix of one model."""

    def __init__(self, model: nn.Module, tokens: Tokens, system: str | None = None, answer_prefix: str = "") -> None:
        self.tokens = tokens
        self.prompts = Answerer(model, tokens.prompts, system, answer_prefix)
        """Makes tokens of chats, under `tokens.lock`."""
        self.stops = self.prompts.stops

    def tail(self, prompt: list[int]) -> str:
        """The end of a prompt as text."""
        return self.tokens.decoding_prompt()(prompt[-PROMPT_TAIL:])


class TokenizerStore:
    """Tokenizers that were loaded, by the bytes of their files: adapters of one base mostly bring the same.

    To read one holds up all threads of this process, up to a second for a large vocabulary (its library keeps the
    interpreter to itself), so the base's is known in the form, too, in which training has saved it beside an adapter.
    """

    def __init__(self) -> None:
        self._known: dict[str, Tokens] = {}

    def add(self, folder: Path, tokenizer: Any) -> Tokens:
        """Put one in that is loaded from a folder, also as training saves it."""
        tokens = self._of(folder, lambda: tokenizer)
        with contextlib.suppress(Exception), tempfile.TemporaryDirectory() as saved:  # not all can be saved
            tokenizer.save_pretrained(saved)
            keep_old_keys(Path(saved), folder)
            self._known.setdefault(_digest(Path(saved)), tokens)
        return tokens

    def load(self, folder: Path) -> Tokens:
        """The tokenizer of a model or adapter folder."""
        return self._of(folder, lambda: load_tokenizer(folder))

    def _of(self, folder: Path, make: Callable[[], Any]) -> Tokens:
        digest = _digest(folder)
        if digest not in self._known:
            self._known[digest] = Tokens(make())
        return self._known[digest]


def _digest(folder: Path) -> str:
    """Of the files that a tokenizer is made of."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in TOKENIZER_FILES for file in folder.glob(pattern) if file.is_file()}):
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)} ".encode() + content)
    return digest.hexdigest()
