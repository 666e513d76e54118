"""Personal data in a text that is still being written: found in windows that close as the text goes on, so that it
is the same however the text was cut into pieces.

A window begins with the first token that holds a digit, an @ or the like, and ends where several tokens without one
have followed: what makes a number a telephone number stands near it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import replace

from tuneloop.safety import pii
from tuneloop.safety.span import Span

CONTEXT = 64
"""Characters before a window that may say what a number in it is."""
_AFTER = 4
"""Chinese characters, or half so many Latin words, without a digit, that close a window; so does the end of a line."""
_LONGEST = 512
"""Characters of a window from which the next token begins another."""
_LONGEST_KEY = 16_384
"""Characters of a private key, at most."""
_WIDE = (
    "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\ufe30-\ufe4f"
    "\uff01-\uff0f\uff1a-\uff1f\uff3b-\uff40\uff5b-\uff65\U00020000-\U0003ffff"
)
LONGEST_TOKEN = 2048
"""Characters without a blank of which the first so many are looked at by themselves."""
_TOKEN = re.compile(rf"[^\s{_WIDE}]{{1,{LONGEST_TOKEN}}}|[{_WIDE}]")
_WIDE_OR_BLANK = re.compile(rf"[\s{_WIDE}]")
_HOT = re.compile(r"[\d@\uff20\ufe6b]|-----BEGIN|:[A-Fa-f]{2}:")
_ENDS = frozenset("。！？")
_LAST = re.compile(rf"[^\s{_WIDE}]+\Z")


def _windows(text: str, at: int, ended: bool) -> Iterator[tuple[int, int | None]]:
    """[start, end) of the windows after `at`; end None for the one that the text's end leaves open."""
    start: int | None = None
    calm, key, place = 0, False, _first_hot(text, at)
    while match := _TOKEN.search(text, place):
        token, before, place = match[0], place, match.end()
        wide = _is_wide(token[0])
        if not ended and place == len(text) and not wide and len(token) < LONGEST_TOKEN:
            break  # the token may go on
        if start is not None and not (key and place - start < _LONGEST_KEY):
            line = "\n" in text[before : match.start()] or text[before - 1] in _ENDS
            if calm >= _AFTER or line or place - start > _LONGEST:
                yield start, match.start()
                start, calm, key = None, 0, False
        hot = _HOT.search(token) is not None
        if hot and start is None:
            start = match.start()
        calm = 0 if hot else calm + (1 if wide else 2)
        key = (key or "-----BEGIN" in token) and "-----END" not in token
    if start is not None:
        yield start, len(text) if ended else None
    elif not ended and (last := _LAST.search(text, at)):
        yield len(text) - (len(text) - last.start()) % LONGEST_TOKEN, None


def _first_hot(text: str, at: int) -> int:
    """Where the first token with a digit or the like begins; the text's length where there is none."""
    hot = _HOT.search(text, at)
    if hot is None:
        return len(text)
    before = _LAST.search(text, at, hot.start())
    return hot.start() - (hot.start() - before.start()) % LONGEST_TOKEN if before else hot.start()


def _is_wide(char: str) -> bool:
    return _WIDE_OR_BLANK.match(char) is not None


def find(text: str, kinds: Collection[str] = (), at: int = 0, *, ended: bool = True) -> tuple[list[Span], int]:
    """The personal data in `text` from `at` on, and up to where that is certain: the text's length where it has ended.

    >>> [(s.kind, s.text) for s in find("call 13812345678 or 010-62781234 now")[0]]
    [('mobile', '13812345678'), ('phone', '010-62781234')]
    >>> find("call me at 138", ended=False)
    ([], 11)
    """
    spans: list[Span] = []
    certain = len(text)
    for start, end in _windows(text, at, ended):
        if end is None:
            certain = start
            break
        begin = max(0, start - CONTEXT)
        for span in pii.find(text[begin:end], kinds):
            if begin + span.start >= start:
                spans.append(replace(span, start=begin + span.start, end=begin + span.end))
    return spans, certain
