"""A text as it is read, not as it is encoded: what disguises a word is undone, and each character knows where it was.

The base of a text holds one character for each that is seen: full-width, framed, accented and foreign lookalikes are
plain letters, traditional characters simplified ones, any digit one of 0-9; what shows nothing is gone. Blanks and
signs stay. A view of it holds the letters alone, in classes of those that stand for each other (1, l and i), so that
words can be searched for whatever stands between their letters.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tuneloop.safety import glyphs
from tuneloop.safety.normalise import Folded

ViewName = Literal["plain", "signs", "digits", "stars"]
"""What counts as a letter: plain: letters and digits; signs: signs that look like letters as well; digits: no digits;
stars: stars as well, which stand for any letter."""
_SIGN = "·"
"""Stands for what is no letter."""
LONGEST_RUN = 24
"""So many times a letter may be repeated inside a word."""
_FLAG = "\U0001f1e6-\U0001f1ff"
# \u0066 and &#102; are letters to whom decodes them, marks of HTML are nothing to whom sees it rendered, and two
# regional letters by themselves are a flag.
_ESCAPE = re.compile(
    r"\\u[0-9A-Fa-f]{4}|\\x[0-9A-Fa-f]{2}|&#(?:[0-9]{1,7}|[xX][0-9A-Fa-f]{1,6});|&(?:nbsp|e[mn]sp|thinsp|shy|zwn?j|middot|bull);"
    r"|</?(?:b|i|u|s|em|a|tt|br|p|div|wbr|del|ins|sub|sup|big|span|font|mark|small|code|strong)\s?/?>"
    rf"|(?<![{_FLAG}])[{_FLAG}]{{2}}(?![{_FLAG}])|.",
    re.DOTALL,
)
_BEGUN_ESCAPE = re.compile(
    r"(?:\\(?:u[0-9A-Fa-f]{0,3}|x[0-9A-Fa-f]?)?|&(?:#(?:[0-9]{0,7}|[xX][0-9A-Fa-f]{0,6})|[a-z]{1,6})?|</?[a-z]{0,6}\s?/?"
    rf"|(?<![{_FLAG}])[{_FLAG}]{{1,2}})\Z"
)
_MAY_ESCAPE = re.compile(rf"\\[ux]|&[#a-z]|</?[a-z]|[{_FLAG}]")
_RUN = re.compile(r"([a-z])\1+")


def _is_cjk(char: str) -> bool:
    return "\u2e80" <= char <= "\u9fff" or "\uac00" <= char <= "\ud7af" or char >= "\U00020000" or char in "〇〡"


def _digit(char: str) -> str:
    number = unicodedata.digit(char, -1)
    return str(number) if number >= 0 else ""


def _letters(char: str) -> str:
    """What one character shows: none, one or several plain ones.

    >>> [_letters(c) for c in "ＦÉ\\u200bф發⑤ﬁ*™"]
    ['f', 'e', '', 'ф', '发', '5', 'fi', '*', '™']
    """
    category = unicodedata.category(char)
    if category in {"Cf", "Mn", "Me"} or char in "\u115f\u1160\u3164\uffa0\u2800\x00\x7f":
        return ""
    if alike := glyphs.ALIKE.get(char) or _digit(char):
        return alike
    if category == "So" and (char in "㊙㊗℃℉" or sum(map(str.isalnum, unicodedata.normalize("NFKC", char))) > 1):
        return char  # a sign that is drawn with letters: ™
    out = []
    for part in unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", char)).casefold():
        for one in unicodedata.normalize("NFKD", part):
            if unicodedata.category(one) not in {"Mn", "Me", "Cf"}:
                if _is_cjk(one):
                    one = glyphs.simplified(one)
                elif not one.isascii():
                    one = glyphs.latin(one) or one
                out.append(glyphs.ALIKE.get(one, _digit(one) or one))
    return "".join(out)


class _Bases(dict[int, str]):
    """Character -> what it shows, filled as characters come along; `odd` are those that do not show exactly one."""

    def __init__(self) -> None:
        super().__init__()
        self.odd: set[str] = set()

    def __missing__(self, code: int) -> str:
        out = self[code] = _letters(chr(code))
        if len(out) != 1:
            self.odd.add(chr(code))
        return out


class _Classes(dict[int, str]):
    """Base character -> its class, a blank for what is no letter of the view."""

    def __init__(self, view: ViewName) -> None:
        super().__init__()
        self.view = view

    def __missing__(self, code: int) -> str:
        char = chr(code)
        out = " "
        if self.view == "stars" and char in "*＊":
            out = "*"
        elif self.view == "signs" and char in glyphs.LETTER_OF_SIGN:
            out = glyphs.LETTER_OF_SIGN[char]
        elif char.isascii() and char.isdecimal():
            out = " " if self.view == "digits" else glyphs.LETTER_OF_DIGIT.get(char, char)
        elif char in glyphs.CHINESE_DIGITS:
            digit = glyphs.CHINESE_DIGITS[char]
            out = glyphs.LETTER_OF_DIGIT.get(digit, digit)
        elif char.isalnum():
            out = glyphs.LETTER_OF_LETTER.get(char, char)
        self[code] = out
        return out


_BASES = _Bases()
_CLASSES: dict[ViewName, _Classes] = {name: _Classes(name) for name in get_args(ViewName)}


def skeleton(text: str) -> Folded:
    r"""The base of `text`. Linear in the length.

    >>> skeleton("Ｆ\u200buçк發票").text
    'fuck发票'
    >>> skeleton("a\u200bﬁ").original(1, 3)
    (2, 3)
    """
    if _MAY_ESCAPE.search(text):
        return _mapped([match[0] for match in _ESCAPE.finditer(text)])
    base = text.translate(_BASES)
    if len(base) == len(text) and _BASES.odd.isdisjoint(text):
        return Folded(base)
    return _mapped(text)


def _mapped(parts: Sequence[str]) -> Folded:
    out: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    at = 0
    for part in parts:
        shown = _BASES[ord(part if len(part) == 1 else _decoded(part))]
        out.append(shown)
        starts += [at] * len(shown)
        at += len(part)
        ends += [at] * len(shown)
    return Folded("".join(out), starts, ends)


def _decoded(escape: str) -> str:
    if escape[0] == "<":
        return "\n" if escape.strip("</> ") in {"br", "p", "div"} else _SIGN
    if escape[0] == "\\":
        return chr(int(escape[2:], 16))
    if escape[0] != "&":
        return _SIGN
    if escape[1] != "#":
        return html.unescape(escape)
    number = int(escape[3:-1], 16) if escape[2] in "xX" else int(escape[2:-1])
    return chr(number) if number < 0x110000 else "\ufffd"


def begun_escape(text: str) -> int:
    """Where an escape begins that the text's end has cut; the text's length where there is none.

    >>> begun_escape("ab\\\\u00"), begun_escape("ab")
    (2, 2)
    """
    match = _BEGUN_ESCAPE.search(text, max(0, len(text) - 12))
    return match.start() if match else len(text)


@dataclass(frozen=True, slots=True)
class LetterView:
    """The letters of a base in their classes; of each the first and last character of the base that it stands for, and,
    in a view in which repeated letters are one, how often it is there."""

    name: ViewName
    letters: str
    first: Sequence[int]
    last: Sequence[int]
    counts: Sequence[int] | None = None


def views(base: str) -> list[LetterView]:
    """All ways to read a base that differ.

    >>> [(v.name, v.letters) for v in views("fuuk* 5!")]
    [('plain', 'fuuks'), ('plain', 'fuks'), ('signs', 'fuuksi'), ('signs', 'fuksi'), ('digits', 'fuuk'), \
('digits', 'fuk'), ('stars', 'fuuk*s'), ('stars', 'fuk*s')]
    """
    names: list[ViewName] = ["plain"]
    if not glyphs.LETTER_OF_SIGN.keys().isdisjoint(base):
        names.append("signs")
    if any(digit in base for digit in "0123456789"):
        names.append("digits")
    if "*" in base:
        names.append("stars")
    out = []
    for name in names:
        classes = base.translate(_CLASSES[name])
        at = [k for k, char in enumerate(classes) if char != " "] if " " in classes else range(len(classes))
        view = LetterView(name, classes.replace(" ", ""), at, at)
        out.append(view)
        if once := shortened(view):
            out.append(once)
    return out


def shortened(view: LetterView) -> LetterView | None:
    """The view with each letter that is repeated written once; None where none is.

    >>> short = shortened(views("shiit")[0])
    >>> short.letters, short.first, short.last, short.counts
    ('shit', [0, 1, 2, 4], [0, 1, 3, 4], [1, 1, 2, 1])
    """
    letters: list[str] = []
    first: list[int] = []
    last: list[int] = []
    counts: list[int] = []
    at = 0
    for run in _RUN.finditer(view.letters):
        start, end = run.span()
        if end - start > LONGEST_RUN:
            continue
        letters.append(view.letters[at : start + 1])
        first += view.first[at : start + 1]
        last += view.last[at:start]
        last.append(view.last[end - 1])
        counts += [1] * (start - at)
        counts.append(end - start)
        at = end
    if not at:
        return None
    letters.append(view.letters[at:])
    first += view.first[at:]
    last += view.last[at:]
    counts += [1] * (len(view.letters) - at)
    return LetterView(view.name, "".join(letters), first, last, counts)
