"""Numbers of documents and accounts, in folded text. Each finder yields (start, end)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tuneloop.safety import context
from tuneloop.safety.checksums import iban, iban_length, luhn, resident_id

Place = tuple[int, int]

_ID = re.compile(r"[1-9]\d{5}([ -]?)\d{8}\1\d{3}[\dXx](?![0-9A-Za-z])")
_OLD_ID = re.compile(r"[1-9]\d{14}(?![0-9A-Za-z])")
_PLAIN_CARD = re.compile(r"\d{12,}")
_GROUPED_CARD = re.compile(
    r"\d{4}([ -])\d{4}\1\d{4}\1(?:\d{4}\1\d{1,3}|\d{1,7})(?!\d)|3\d{3}([ -])\d{6}\2\d{4,5}(?!\d)"
)
# Issuer ranges with the lengths they are issued in: enough by themselves …
_ISSUERS = re.compile(
    r"4\d{15}(?:\d{3})?"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|35(?:2[89]|[3-8]\d)\d{12}"  # JCB
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12}"  # Discover
    r"|62\d{14}(?:\d|\d{3})?|9558\d{15}"  # UnionPay, ICBC's old debit cards
)
# … and what a word such as "card" before them is needed for: short, rare and new ranges.
_OTHER_ISSUERS = re.compile(r"[2-9]\d{11,18}|1800\d{11}")
_SSN = re.compile(r"\d{3}([ -]?)\d{2}\1\d{4}(?![\d-])")
_PASSPORT = re.compile(r"(?<![A-Za-z0-9])(?:[A-Za-z]{1,2}\d{7,8}|\d{8,9}|[A-Z]\d{2}[A-Z0-9]{6})(?![A-Za-z0-9])")
_IBAN = re.compile(r"[A-Z]{2}\d{2}")


def _after(text: str, start: int) -> str:
    """The character before `start`, if it is one that continues a number or a word."""
    last = text[start - 1 : start]
    if last in ("-", "."):
        return last if text[start - 2 : start - 1].isdecimal() else ""
    return last if last.isascii() and (last.isalnum() or last == "_") else ""


def resident_ids(text: str) -> Iterator[Place]:
    """Chinese resident IDs that check out; the old form of 15 digits only after a word that says so."""
    for match in _ID.finditer(text):
        start, end = match.span()
        if not text[start - 1 : start].isdecimal() and resident_id(re.sub("[ -]", "", match[0])):
            yield start, end
    for match in _OLD_ID.finditer(text):
        start, end = match.span()
        if not _after(text, start) and resident_id(match[0]) and context.before(text, start, context.RESIDENT_ID):
            yield start, end


def cards(text: str) -> Iterator[Place]:
    """Payment cards: an issuer's range and length, and Luhn's check digit."""
    for pattern in (_PLAIN_CARD, _GROUPED_CARD):
        for match in pattern.finditer(text):
            start, end = match.span()
            if end - start <= 23 and not _after(text, start) and _is_card(text, start, end):
                yield start, end


def _is_card(text: str, start: int, end: int) -> bool:
    digits = re.sub("[ -]", "", text[start:end])
    following = text[end : end + 2]
    if re.match(r"[A-Za-z_]|\.\d", following) or len(digits) > 19 or not luhn(digits):
        return False
    if context.before(text, start, context.CARD):
        return bool(_OTHER_ISSUERS.fullmatch(digits))
    return bool(_ISSUERS.fullmatch(digits)) and not context.numbered(text, start)


def ibans(text: str) -> Iterator[Place]:
    """International bank account numbers, in one piece or in groups of four."""
    for head in _IBAN.finditer(text):
        start, length = head.start(), iban_length(head[0][:2])
        if not length or _after(text, start):
            continue
        number, end = _iban_at(text, start, length)
        bounded = not (text[end : end + 1].isascii() and text[end : end + 1].isalnum())
        if bounded and number.isascii() and number.isalnum() and number == number.upper() and iban(number):
            yield start, end


def _iban_at(text: str, start: int, length: int) -> tuple[str, int]:
    """The IBAN's characters without blanks, and where it ends."""
    if text[start + 4 : start + 5] not in (" ", "-"):
        return text[start : start + length], start + length
    end = start + length + (length - 1) // 4
    return text[start:end].replace(text[start + 4], ""), end


def social_security_numbers(text: str) -> Iterator[Place]:
    """United States: 123-45-6789 in the ranges that are issued; written otherwise only after a word that says so."""
    for match in _SSN.finditer(text):
        start, end = match.span()
        number = re.sub("[ -]", "", match[0])
        if number[:3] in ("000", "666") or number[0] == "9" or number[3:5] == "00" or number[5:] == "0000":
            continue
        if _after(text, start) or (text[end : end + 1].isalpha() and text[end].isascii()):
            continue
        if match[1] == "-" or context.before(text, start, context.SSN):
            yield start, end


def passports(text: str) -> Iterator[Place]:
    """A passport's or travel permit's number, within 30 characters after the word."""
    done = 0
    for word in context.PASSPORT.finditer(text):
        if word.start() < done:
            continue
        match = _PASSPORT.search(text, word.end(), word.end() + 40)
        if match and match.start() - word.end() <= 30 and "\n\n" not in text[word.end() : match.start()]:
            done = match.end()
            yield match.span()
