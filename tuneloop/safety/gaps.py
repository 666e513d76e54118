"""What stands between the letters of a word: the disguise of somebody who hides it, or an ordinary text that happens to
have these letters one after the other ("人口。交通", "he'll", "the cook. Sucker").

All functions look at a base (`skeleton`), and at the places of a word's letters in it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

LONGEST = 20
"""Characters between two letters of a word, at most."""
_CLAUSES = frozenset(",;:!?，。！？；：、\n\r…\"“”‘’'`()[]{}《》〈〉「」『』【】")
"""What ordinary texts have between two words."""
_BLANKS = frozenset(" \t\u3000")
_APOSTROPHES = frozenset("'’‘`")
_ENDINGS = ("ll", "s", "t", "d", "m", "re", "ve")


def is_latin(char: str) -> bool:
    """A letter or digit of a script that writes words apart; Chinese, Japanese and Korean ones are not."""
    return char.isalnum() and char < "\u2e80"


def _between(base: str, first: Sequence[int], last: Sequence[int]) -> list[str]:
    return [base[last[k] + 1 : first[k + 1]] for k in range(len(first) - 1)]


def as_written(base: str, first: Sequence[int], last: Sequence[int], parted: Collection[int]) -> bool:
    """Whether a phrase stands there as its list has it: parted where it is parted there, and Latin words nowhere else.
    Between Chinese characters anything may stand."""
    for k, gap in enumerate(_between(base, first, last)):
        if len(gap) > LONGEST or (k in parted and not gap):
            return False
        if gap and k not in parted and is_latin(base[last[k]]) and is_latin(base[first[k + 1]]):
            return False
    return True


def as_disguise(
    base: str, first: Sequence[int], last: Sequence[int], parted: Collection[int], *, hidden: bool = False
) -> bool:
    """Whether the letters belong together, whatever stands between them.

    `parted` are the places where the word itself has a blank or sign: something may stand there, and need not.
    `hidden`: something must stand somewhere else.
    """
    if last[-1] - first[0] == len(first) - 1:
        return not hidden
    between = _between(base, first, last)
    if any(len(gap) > LONGEST for gap in between):
        return False
    own = [(k, gap) for k, gap in enumerate(between) if gap and k not in parted]
    if not own:
        return not hidden
    if len(own) > 1 and 2 * len(own) >= len(between) - len(parted):  # between most of its letters: "f u c k"
        return True
    return all(_hides(base, last[k], first[k + 1], gap, len(first)) for k, gap in own)


def _hides(base: str, left: int, right: int, gap: str, length: int) -> bool:
    """Whether a single gap between two letters is no ordinary one."""
    blank = not _BLANKS.isdisjoint(gap)
    signs = set(gap) - _BLANKS
    if is_latin(base[left]) and is_latin(base[right]):
        if signs & {"\n", "\r"} or (blank and base[left - 1 : left] in _APOSTROPHES and base[left - 1 : left]):
            return False  # a line's end; "the 80's hit"
        if signs & _APOSTROPHES and re.split(r"\W", base[right : right + 4])[0] in _ENDINGS:
            return False
        # "the cook. Sucker": a sign with a blank behind it is punctuation, another is none.
        if not blank or len(signs) > 1 or gap[-1] in ".,":
            return True
        return not signs & (_CLAUSES | {"."} | set("0123456789"))
    # Between Chinese characters anything hides: one clause hardly ever ends and the next begins with a listed word's
    # letters, and where they do ("路口，交通") a harmless phrase says so.
    return True
