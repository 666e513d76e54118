"""Addresses of machines, in folded text. Each finder yields (start, end)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from tuneloop.safety import context

Place = tuple[int, int]

_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}(?!\.?[0-9A-Za-z_])")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{3,}")
_MAC = re.compile(r"[0-9A-Fa-f]{2}([:-])[0-9A-Fa-f]{2}(?:\1[0-9A-Fa-f]{2}){4}(?![0-9A-Za-z]|[:-][0-9A-Fa-f])")
_PAIR = re.compile(r"[0-9A-Fa-f]{2}[:-]$")
_LINE_START = re.compile(r"(?:\A|\n)[ \t#*]*$")
_TITLE = re.compile(r"[ \t]{1,2}[^\W\d]")
_CHAPTER = re.compile(r" ?(?:节|章|条|小节|版)")
_GROUP = re.compile(r"(?=[0-9A-Fa-f]*\d)[0-9A-Fa-f]{3,4}")


def ips(text: str) -> Iterator[Place]:
    """IPv4 and IPv6 addresses, private ones too; no version, no number of a section or figure."""
    if text.count(".") >= 3:
        for match in _IPV4.finditer(text):
            start, end = match.span()
            versioned = _continued(text, start) or context.before(text, start, context.VERSION, 24)
            if not versioned and not _is_section(text, start, end):
                yield start, end
    if text.count(":") >= 2:
        for match in _IPV6.finditer(text):
            start, end = match.span()
            if end - start > 64 or text.count(":", start, end) < 2:
                continue
            start += _label(match[0], _continued(text, start))
            end -= len(match[0]) - len(match[0].rstrip("."))
            if _is_ipv6(text, start, end):
                yield start, end


def _continued(text: str, start: int) -> bool:
    last = text[start - 1 : start]
    return last.isascii() and (last.isalnum() or last in ("_", "."))


def _is_section(text: str, start: int, end: int) -> bool:
    """1.2.3.4 at the beginning of a line with words after it, or 1.2.3.4 节."""
    if _CHAPTER.match(text, end):
        return True
    heading = _TITLE.match(text, end) and _LINE_START.search(text, max(0, start - 8), start)
    return bool(heading) and all(int(octet) <= 20 for octet in text[start:end].split("."))


def _label(chunk: str, continued: bool) -> int:
    """How many characters at its beginning belong to a label, as in "address:2001:…" and "IPv6:2001:…"."""
    colon = chunk.index(":")
    return colon + 1 if (colon == 0 or continued) and chunk[colon + 1 : colon + 2] != ":" else 0


def _is_ipv6(text: str, start: int, end: int) -> bool:
    following = text[end : end + 1]
    if _continued(text, start) or (following.isascii() and following.isalnum()):
        return False
    body = text[start:end]
    groups = [g for g in body.split(":") if g]
    # A::B is C++ and ::1 is everyone's: asked for are eight groups, or one that looks like part of an address.
    if not (len(groups) == 8 or "::" in body) or not any(_GROUP.fullmatch(g) or "." in g for g in groups):
        return False
    try:
        ipaddress.IPv6Address(body)
    except ValueError:
        return False
    return True


def macs(text: str) -> Iterator[Place]:
    """Hardware addresses, aa:bb:cc:dd:ee:ff or with dashes; of digits and dashes alone only after the word MAC."""
    for match in _MAC.finditer(text):
        start, end = match.span()
        if _continued(text, start) or _PAIR.search(text, max(0, start - 3), start):
            continue
        letters = any(c.isalpha() for c in match[0])
        if letters or match[1] == ":" or context.before(text, start, context.MAC):
            yield start, end
