"""The text of one answer while it is written: in whole characters, held back where a stop text may have begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

PIECE = "\ufffd"
"""What a tokenizer decodes an unfinished character to."""
Decode = Callable[[list[int]], str]


def decoding(tokenizer: Any, *, special: bool = False) -> Decode:
    """Tokens -> text with this tokenizer, without its special tokens or with them.

    Cleaning would take back blanks that a stream has sent already, and write what was not trained.
    """
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    if isinstance(tokenizer, PreTrainedTokenizerFast) and kind._decode is PreTrainedTokenizerFast._decode:
        backend = tokenizer.backend_tokenizer
        return lambda tokens: str(backend.decode(tokens, skip_special_tokens=not special))
    return lambda tokens: str(
        tokenizer.decode(tokens, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
    )


class TextStream:
    """What may be sent of an answer, token by token. Once `stopped`, a stop text was written, and all before it sent.

    Only the last tokens are decoded anew: those since the character boundary before the last one.

    >>> stream = TextStream(lambda tokens: bytes(tokens).decode(errors="replace"), ("END",))
    >>> [stream.feed(byte) for byte in "aé EN".encode()], stream.feed(ord("X")), stream.end()
    (['a', '', 'é', ' ', '', ''], 'ENX', '')
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(text for text in stop if text)
        self._tokens: list[int] = []
        self._window = self._read = 0
        """Places in the tokens: where decoding begins, and the last boundary of characters."""
        self._shown = 0
        """Characters of the window's text that were taken."""
        self._held = ""
        self.stopped = False
        """Whether a stop text was written."""

    @property
    def held(self) -> bool:
        """Whether text of the tokens so far is held back."""
        return bool(self._held) or self._read < len(self._tokens)

    def feed(self, token: int) -> str:
        """The text that is clear with one more token."""
        self._tokens.append(token)
        text = self._decode(self._tokens[self._window :])
        complete = text.rstrip(PIECE)
        new = complete[self._shown :]
        if complete != text:
            # An unfinished run of bytes may be shown as such from its start, with characters that were sent already.
            self._shown = max(self._shown, len(complete))
            return self._clear(new)
        tail = self._decode(self._tokens[self._read :])
        if tail:  # a window without text would lose the blank that the first word of a text is written without
            self._window, self._shown = self._read, len(tail)
        else:
            self._shown = len(text)
        self._read = len(self._tokens)
        return self._clear(new)

    def end(self) -> str:
        """What was held back, once no more tokens come; the first bytes of a character are left out."""
        text, self._held = self._held, ""
        return text

    def _clear(self, new: str) -> str:
        text = self._held + new
        if self.stopped or not self._stop:
            return "" if self.stopped else text
        if (cut := first_stop(text, self._stop)) is not None:
            self.stopped, self._held = True, ""
            return text[:cut]
        held = max((_begun(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _begun(text: str, stop: str) -> int:
    """Characters at the end of a text with which a stop text may have begun.

    >>> _begun("one EN", "END"), _begun("one", "END")
    (2, 0)
    """
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest stop text begins.

    >>> first_stop("one END two", ("END", "two"))
    4
    """
    places = [text.find(s) for s in stop if s and s in text]
    return min(places) if places else None
