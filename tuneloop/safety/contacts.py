"""Mobile and other telephone numbers, and e-mail addresses, in folded text. Each finder yields (start, end)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tuneloop.safety import context

Place = tuple[int, int]

# The bodies begin with a plain digit, which is quick to search for; what may stand before them is judged afterwards.
_MOBILE = re.compile(r"1[3-9]\d([ -]?)\d{4}\1\d{4}(?!\d)")
_CHINA = re.compile(r"(?:\(?(?:\+|\b00)86\)?|(?<![\d.])\(?86\)?)[ -]?$")
_CALLED = re.compile(r"(?:tel|phone|mob|mobile|wx|wechat|cell)$", re.IGNORECASE)
_MONEY = re.compile(r" ?(?:元|美元|块钱|万|亿|人民币|rmb|%)|\.\d", re.IGNORECASE)

_EXTENSION = r"(?:(?: ?转 ?| ?ext\.? ?| ?x|-)\d{1,5}(?!\d))?"
_PHONES = (
    # Chinese land lines with area code; 400 and 800 numbers.
    re.compile(r"\(?0(?:10|2\d|[3-9]\d{2})(?:\) ?|[ -])\d{3,4}[ -]?\d{4}(?!\d)" + _EXTENSION),
    re.compile(r"[48]00-\d{3,4}-\d{3,4}(?!\d)" + _EXTENSION),
    # North America: (212) 555-0123, 212-555-0123, 212.555.0123, 1-212-555-0123.
    re.compile(r"(?:1[-. ])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-.])[2-9]\d{2}[-. ]\d{4}(?!\d)" + _EXTENSION),
    # National form of many European countries: a leading 0 and groups.
    re.compile(r"0[1-9]\d{1,3}(?: \d{2,4}){2,4}(?!\d)"),
    # International.
    re.compile(r"\+[1-9](?:[ ().-]{0,2}\d){6,14}(?!\d)" + _EXTENSION),
)
_ANY_PHONE = re.compile(r"\(?\d(?:[ ().-]{0,2}\d){6,}")
_DATE = re.compile(r"(?:19|20)\d\d[-./ ]?(?:0?[1-9]|1[0-2])[-./ ]?(?:0?[1-9]|[12]\d|3[01])(?!\d{3})")

_DOMAIN = re.compile(r"@((?:[A-Za-z0-9\u00c0-\u024f-]{1,63}\.){1,8}[A-Za-z]{2,24})(?![A-Za-z0-9_-])")
_LOCAL = "".join(
    c for c in map(chr, range(0x21, 0x250)) if (c.isalnum() and (c < "\x7f" or c >= "\u00c0")) or c in "._%+-'&"
)
_FILES = frozenset(
    ("png", "jpg", "jpeg", "gif", "webp", "svg", "bmp", "ico", "css", "js", "json", "html", "txt", "pdf")
)


def mobiles(text: str) -> Iterator[Place]:
    """Chinese mobile numbers, with or without +86; not a part of a longer number, no order number, no sum of money."""
    for match in _MOBILE.finditer(text):
        start, end = match.span()
        prefix = _CHINA.search(text, max(0, start - 8), start)
        if prefix:
            start = prefix.start()
        elif _joined(text, start):
            continue
        if not _MONEY.match(text, end) and not context.numbered(text, start):
            yield start, end


def _joined(text: str, start: int) -> bool:
    """Whether the number is the end of something longer: 20231-…, 3.14…, A138…, but not Tel138…."""
    last = text[start - 1 : start]
    if last.isascii() and last.isalpha() and not _CALLED.search(text, max(0, start - 8), start):
        return True
    if last in ("-", "."):
        return text[start - 2 : start - 1].isdecimal()
    return last.isdecimal() or last == "_"


def phones(text: str) -> Iterator[Place]:
    """Land lines and international numbers by their form; any 7 to 15 digits right after a word such as "phone"."""
    for pattern in _PHONES:
        for match in pattern.finditer(text):
            start, end = match.span()
            if _is_phone(text, start, end):
                yield start, end
    for match in _ANY_PHONE.finditer(text):
        start, end = match.span()
        short = end - start <= 30 and sum(map(str.isdecimal, match[0])) <= 15
        if short and context.before(text, start, context.PHONE) and _is_phone(text, start, end):
            yield start, end


def _is_phone(text: str, start: int, end: int) -> bool:
    body = text[start:end]
    last = text[start - 1 : start]
    if (last.isascii() and last.isalpha()) or (last and last in "_+") or _MONEY.match(text, end):
        return False
    if last in ("-", ".", "/") and text[start - 2 : start - 1].isalnum():
        return False
    if last.isdecimal() or _DATE.match(body) or re.fullmatch(r"\+?\d+\.\d+", body):
        return False
    if body.count("(") != body.count(")"):
        return False
    return text[end : end + 1] != "_" and not context.numbered(text, start)


def emails(text: str) -> Iterator[Place]:
    """E-mail addresses; no file names such as icon@2x.png, and not the git@ of a repository's address."""
    for match in _DOMAIN.finditer(text):
        at, end = match.span()
        head = text[max(0, at - 64) : at]
        local = head[len(head.rstrip(_LOCAL)) :].lstrip(".-'&")
        if not local or local.endswith("."):
            continue
        if match[1].rpartition(".")[2].lower() in _FILES or (local == "git" and text[end : end + 1] in (":", "/")):
            continue
        yield at - len(local), end
