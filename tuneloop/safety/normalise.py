"""A text folded for matching, and the way back from its offsets to those of the original.

Folding means NFKC character by character (full-width forms become half-width), dashes as "-", invisible characters
removed and, if wanted, case folded. Marks after a letter are composed with it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

# Soft hyphen, joiners, marks of direction, variation selectors, byte order mark, tags: they show nothing.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]"
)
_DASHES = re.compile("[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")
# Combining marks of the usual scripts, and the vowels and finals of Korean letters. At most 8 are taken together:
# sorting a long run of marks is quadratic, in Python's own normalisation too.
_MARK = (
    "[\u0300-\u034e\u0350-\u036f\u1160-\u11ff\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff"
    "\u3099\u309a\ufe20-\ufe2f\uff9e\uff9f]"
)
_MARKED = re.compile(_MARK)
_CLUSTER = re.compile(f".{_MARK}{{0,8}}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Folded:
    """`text`, and of each of its characters where the original begins and ends; None: at the same place."""

    text: str
    starts: Sequence[int] | None = None
    ends: Sequence[int] | None = None

    def original(self, start: int, end: int) -> tuple[int, int]:
        """The original's [start, end) of the folded text's [start, end), which is not empty."""
        if self.starts is None or self.ends is None:
            return start, end
        return self.starts[start], self.ends[end - 1]


def _digits(text: str) -> int:
    return sum(c.isdecimal() for c in text)


def _folded(part: str, case: bool) -> str:
    out = unicodedata.normalize("NFKC", part)
    if _digits(out) > _digits(part):
        out = part  # ①, ² and ½ are no digits of a number: "①13812345678" is a list's first item
    out = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in out)
    out = _DASHES.sub("-", _INVISIBLE.sub("", out))
    return out.casefold() if case else out


class _Table(dict[str, str]):
    """Character -> folded, filled as characters come along; `odd` are those that do not become exactly one."""

    def __init__(self, case: bool) -> None:
        super().__init__()
        self.case = case
        self.odd: set[str] = set()

    def __missing__(self, part: str) -> str:
        out = _folded(part, self.case)
        if len(part) == 1:  # clusters are without number, characters are not
            self[part] = out
            if len(out) != 1:
                self.odd.add(part)
        return out


_TABLES = {case: _Table(case) for case in (False, True)}


def fold(text: str, *, case: bool = True) -> Folded:
    """`text` for matching; `case=False` leaves capitals as they are. Linear in the length.

    >>> fold("ＱＱ：１３８—OK").text
    'qq:138-ok'
    >>> folded = fold("a\u200bb…Ｃ")
    >>> folded.text, folded.original(0, 2), folded.original(5, 6)
    ('ab...c', (0, 3), (4, 5))
    """
    if text.isascii():
        return Folded(text.lower() if case else text)
    table = _TABLES[case]
    parts: Sequence[str] = _CLUSTER.findall(text) if _MARKED.search(text) else text
    folded = [table[part] for part in parts]
    if len(parts) == len(text) and table.odd.isdisjoint(text):
        return Folded("".join(folded))
    starts, ends, at = [], [], 0
    for part, out in zip(parts, folded, strict=True):
        starts += [at] * len(out)
        at += len(part)
        ends += [at] * len(out)
    return Folded("".join(folded), starts, ends)
