"""Token ids of many texts, each distinct stretch of text tokenised once.

A tokenizer first cuts a text at its added tokens (<|im_start|>, say), and what stands between two of them it tokenises
by itself. So the ids of a text are the ids of its stretches, and the ids of its beginning are those of the stretches
before, and of the rest. A dialogue's turns come again in each of its samples, its system prompt in each dialogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.data.tokens.control_tokens import word_pattern
from tuneloop.data.tokens.samples import starts_of
from tuneloop.data.tokens.templates import encode_guarded

Key = str | tuple[int, ...]
"""A stretch of text, or the ids that stand for themselves."""

_REMEMBERED = 30_000
"""Words whose ids the tokenizer's model keeps. Its own 10,000 are full after a few hundred Chinese dialogues, and it
forgets none for a newer one: a tenth of the time (7 MB of memory for it)."""
_LONGEST = 200  # characters of an added token that the pattern takes; the pattern is as deep as they are long


class Splitter:
    """Cuts texts where a tokenizer cuts them. `exact` is false for a tokenizer that does not work this way."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        if resize := getattr(
            getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), "_resize_cache", None
        ):
            resize(_REMEMBERED)
        tokens = _added(tokenizer)
        self._pattern, self._standalone = word_pattern(tuple(tokens)), {word for word, alone in tokens.items() if alone}
        self.exact = tokens != {} and self._proves()

    def cut(self, text: str) -> list[str]:
        """The stretches of a text and the added tokens between them, in order; none of them is empty.

        A token that takes blanks beside it stays in its stretch: the tokenizer finds it there again.
        """
        out: list[str] = []
        begin = 0
        for match in self._pattern.finditer(text):
            if match.group() in self._standalone:
                if match.start() > begin:
                    out.append(text[begin : match.start()])
                out.append(match.group())
                begin = match.end()
        if begin < len(text):
            out.append(text[begin:])
        return out

    def agrees(self, texts: Sequence[str]) -> bool:
        """Whether these texts' ids are those of their stretches."""
        parts = [self.cut(text) for text in texts]
        ids = iter(encode_guarded(self._tokenizer, [part for own in parts for part in own]))
        joined = [[token for _ in own for token in next(ids)] for own in parts]
        return joined == encode_guarded(self._tokenizer, list(texts))

    def _proves(self) -> bool:
        """Tried on each way a text can begin: a tokenizer that treats its beginning unlike the rest shows here."""
        words = sorted(self._standalone)[:3]
        return all(self.agrees([f"Ab c{w}Ab c{w} Ab c\n{w}\n{w}{w}", f"{w}Ab c", f" Ab{w}"]) for w in words)


def _added(tokenizer: Any) -> dict[str, bool]:
    """Each added token that is looked for in the raw text -> whether it stands alone. Empty where no cut is safe."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or getattr(tokenizer, "split_special_tokens", False):
        return {}
    added = [token for token in backend.get_added_tokens_decoder().values() if not token.normalized]
    if any(token.single_word or not 0 < len(token.content) <= _LONGEST for token in added):
        return {}
    return {token.content: not (token.lstrip or token.rstrip) for token in added}


class Pool:
    """Stretches of text, each once, and their ids when all of them are known.

    ids int32, of all stretches behind each other; starts int64 [n + 1].
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._places: dict[Key, int] = {}
        self.ids: NDArray[np.int32] = np.zeros(0, np.int32)
        self.starts: NDArray[np.int64] = np.zeros(1, np.int64)

    def place(self, key: Key) -> int:
        """The number of a stretch."""
        return self._places.setdefault(key, len(self._places))

    def fill(self) -> None:
        """Tokenise what is there."""
        texts = iter(encode_guarded(self._tokenizer, [key for key in self._places if isinstance(key, str)]))
        every: list[Sequence[int]] = [next(texts) if isinstance(key, str) else key for key in self._places]
        self.starts = starts_of(np.array([len(ids) for ids in every], np.int64))
        self.ids = np.fromiter(chain.from_iterable(every), np.int32, self.starts[-1])

    def begins(self, stretch: int, head: int) -> bool:
        """Whether the ids of one stretch begin with those of another."""
        a, b = self.starts[stretch], self.starts[head]
        length = self.starts[head + 1] - b
        if self.starts[stretch + 1] - a < length:
            return False
        return bool((self.ids[a : a + length] == self.ids[b : b + length]).all())
