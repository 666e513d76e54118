"""Ordinary text: token ids by a tokenizer that knows no control tokens, however they are spelled."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tuneloop.data.tokens.control_tokens import GUARD, ControlTokens, control_tokens, cut_at_guards, unguarded

BEFORE = f"\ufdd2{uuid.uuid4().hex}"
"""What stands before a text that does not begin the whole: no text holds it, and no id of it is handed on."""


@lru_cache(maxsize=8)
def ordinary(tokenizer: Any, backend: Any, size: int) -> Ordinary:
    """The tokenizer, of `size` tokens now, without its control tokens; `backend` is the library's inside it."""
    return Ordinary(tokenizer, backend)


class Ordinary:
    """The normaliser, pre-tokenizer and model of a tokenizer, shared with it, and of its added tokens those that are no
    control tokens."""

    def __init__(self, tokenizer: Any, backend: Any) -> None:
        from tokenizers import AddedToken, Tokenizer

        self._control = control_tokens(tokenizer)
        self._bare = Tokenizer(backend.model)
        for part in ("normalizer", "pre_tokenizer"):
            if getattr(backend, part) is not None:
                setattr(self._bare, part, getattr(backend, part))
        added = backend.get_added_tokens_decoder()
        others = {i: token for i, token in added.items() if token.content not in self._control.added}
        self._bare.add_tokens(list(others.values()))
        self._ids = {self._bare.token_to_id(token.content): i for i, token in others.items()}
        self._before = not self._is_alike(backend)
        if self._before:
            self._bare.add_special_tokens([AddedToken(BEFORE, normalized=False, special=True)])

    def _is_alike(self, backend: Any) -> bool:
        """Whether a text has the same ids behind a control token as alone (llama's begins with a blank there)."""
        alone = next((w for w, token in self._control.added.items() if not (token.lstrip or token.rstrip)), "")
        head = backend.encode(alone, add_special_tokens=False).ids
        return all(
            backend.encode(alone + text, add_special_tokens=False).ids == [*head, *self._encoded([text])[0]]
            for text in ("Ab c", " Ab c", "\nAb c", "\u4f60\u597d")
        )

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        batch = self._bare.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[self._ids.get(i, i) for i in encoding.ids] for encoding in batch]

    def encode(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Token ids of guarded texts, each with whether something stands before it; no control token is among them."""
        contents = [unguarded(text) for text, _ in texts]
        out = self._after(contents, [behind for _, behind in texts])
        for n, (text, behind) in enumerate(texts):
            if not self._control.ids.isdisjoint(
                out[n]
            ):  # a model that has them as words (Unigram): cut in their middle
                parts = cut_at_guards(text)
                out[n] = [i for ids in self._after(parts, [behind] + [True] * (len(parts) - 1)) for i in ids]
        return out

    def _after(self, texts: Sequence[str], behind: Sequence[bool]) -> list[list[int]]:
        if not self._before:
            return self._encoded(texts)
        ids = self._encoded([BEFORE * there + text for text, there in zip(texts, behind, strict=True)])
        return [own[there:] for own, there in zip(ids, behind, strict=True)]


def stretches(text: str, control: ControlTokens) -> list[tuple[str, bool, bool]]:
    """(stretch, whether it has guards, whether a control token stands before it): what the tokenizer reads as it is,
    and what is ordinary text between two control tokens."""
    out: list[tuple[str, bool, bool]] = []
    begin = last = 0  # of what is read as it is; of what stands behind the last control token
    strips_before = False
    for match in [*control.pattern.finditer(text), None]:
        end = match.start() if match else len(text)
        if GUARD in text[last:end]:
            following = control.added.get(match[0]) if match else None
            if strips_before:  # a token takes the blanks beside it
                last = end - len(text[last:end].lstrip())
            stop = last + len(text[last:end].rstrip()) if following is not None and following.lstrip else end
            if last > begin:
                out.append((text[begin:last], False, begin > 0))
            out.append((text[last:stop], True, last > 0))
            begin = stop
        if match:
            last = match.end()
            token = control.added.get(match[0])
            strips_before = token is not None and token.rstrip
    if begin < len(text):
        out.append((text[begin:], False, begin > 0))
    return out
