"""The bytes that each token of a tokenizer stands for: several tokens may share a character."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Token id -> its bytes, as they stand in a text: byte-level tokenizers, and those with bytes to fall back on."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = {n: str(token) for n, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        state = decoder.__getstate__().decode() if decoder is not None else ""
        self._byte_level = '"ByteLevel"' in state
        self._pieces = '"Metaspace"' in state or '"ByteFallback"' in state or "▁" in state
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token: int) -> bytes:
        if token not in self._known:
            self._known[token] = self._of(token)
        return self._known[token]

    def _of(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode("utf-8", "replace")
        text = self._tokenizer.convert_ids_to_tokens(token)
        if text is None:  # a row of the model that the tokenizer has no token for
            return b""
        if self._byte_level:
            alphabet = _alphabet()
            if all(letter in alphabet for letter in text):
                return bytes(alphabet[letter] for letter in text)
        elif self._pieces:
            byte = _BYTE.fullmatch(text)
            return bytes([int(byte[1], 16)]) if byte else text.replace("▁", " ").encode("utf-8", "replace")
        return str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False)).encode("utf-8", "replace")


@cache
def _alphabet() -> dict[str, int]:
    """Letter -> byte of byte-level tokenizers: printable bytes are themselves, the others follow from 256 on.

    >>> _alphabet()["a"], _alphabet()["Ġ"]
    (97, 32)
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [n for n in range(256) if n not in printable]
    return {chr(n): n for n in printable} | {chr(256 + k): n for k, n in enumerate(others)}
