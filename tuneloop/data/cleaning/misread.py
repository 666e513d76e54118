"""Mojibake of Chinese: GBK or Big5 decoded as Latin-1; and texts that only discuss wrong encodings.

A text is repaired exactly, or not at all where its original encoding is uncertain.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache

_WINDOWS = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
"""Characters that Windows-1252 has for the bytes 80 to 9F."""
_SEGMENT = re.compile(f"[\x00-\xff{_WINDOWS}]+")
_BYTES = re.compile(rf"(?:[\x80-\xff{_WINDOWS}][@-~]?){{4,}}")
_WORD = re.compile(r"(?:\S|(?<=[^\x00-\x7f])[\x85\xa0]{2,3})+")
"""A word; NEL and a no-break space, two of them behind a letter beyond ASCII, are bytes of a character."""
_UTF8 = re.compile(rb"(?:[\xc2-\xdf]|(?:[\xe0-\xef]|[\xf0-\xf4][\x80-\xbf ?])[\x80-\xbf ?])[\x80-\xbf ?]")


@lru_cache(maxsize=16)
def is_bytes(text: str) -> bool:
    """Whether a text looks like misdecoded bytes: runs of non-ASCII letters, at most one other character between them.

    >>> is_bytes("ÄãºÃ£¬ÊÀ½ç"), is_bytes("PROTEÇÃO E INFORMAÇÃO"), is_bytes("révélé à Paris")
    (True, False, False)
    """
    return any(sum("\x80" <= c <= "\xff" for c in set(run) - {"\x85"}) >= 3 for run in _BYTES.findall(text))


def is_utf8(before: str, after: str) -> bool:
    """Whether the words that a repair changes are UTF-8 decoded in one of ftfy's encodings; a byte may be missing.

    >>> is_utf8("a naÃ¯ve there", "a naïve there"), is_utf8("°eØ¹", "°eع")
    (True, False)
    """
    from ftfy.chardata import CHARMAP_ENCODINGS

    words = Counter(_WORD.findall(before)) - Counter(_WORD.findall(after))
    text = " ".join([*words, ""]).replace("\ufffd", "?")
    far = sum(not c.isascii() for c in text)
    for encoding in CHARMAP_ENCODINGS:
        octets = text.encode(encoding, "ignore")
        total = sum(byte >= 0x80 for byte in octets)
        least = 0xA0 if encoding == "sloppy-windows-1252" else 0x80  # its quotes and dashes may be meant
        others = sum(byte >= least for byte in _UTF8.sub(b"", octets))
        if total >= 0.9 * far and others < 0.08 * total:
            return True
    return False


@cache
def _frequent() -> frozenset[str]:
    from tuneloop.data.reading.encodings import FREQUENT_HANZI

    return FREQUENT_HANZI


def _characters(encoding: str, leads: range) -> frozenset[str]:
    tails = [*range(0x40, 0x7F), *range(0xA1, 0xFF)]
    pairs = (bytes([lead, tail]).decode(encoding, "ignore") for lead in leads for tail in tails)
    return frozenset(c for pair in pairs for c in pair if len(pair) == 1 and "\u4e00" <= c <= "\u9fff")


@cache
def _usual(encoding: str) -> frozenset[str]:
    """The common characters of an encoding: the first level of GB 2312 or of Big5, and Chinese punctuation."""
    leads = range(0xA4, 0xC7) if encoding == "big5" else range(0xB0, 0xD8)
    signs = "，。！？、；：“”‘’（）《》【】「」『』…—·～–￥　％＋－＝／．"
    return _characters("big5" if encoding == "big5" else "gb2312", leads) | frozenset(signs)


def chinese(text: str) -> str:
    """The text with its GBK or Big5 lines decoded; the very same text where any line is uncertain.

    >>> chinese("ÄãºÃ£¬ÊÀ½ç"), chinese("§A¦n¡A¥@¬É"), chinese("Ça va, été")
    ('你好，世界', '你好，世界', 'Ça va, été')
    """
    if not is_bytes(text):
        return text
    readings = {encoding: _read(text, encoding) for encoding in ("gb18030", "big5")}
    scores = {encoding: _score(meant, encoding) if meant else 0.0 for encoding, meant in readings.items()}
    best, other = sorted(scores, key=lambda encoding: -scores[encoding])
    sure = scores[best] >= 0.2 and scores[best] >= 2.5 * scores[other]
    return readings[best] if sure else text


def _octets(segment: str) -> bytes:
    """The original bytes of a segment that was decoded as Latin-1 or Windows-1252."""
    try:
        return segment.encode("latin-1")
    except UnicodeEncodeError:
        import ftfy  # noqa: F401  (brings the codec)

        return segment.encode("sloppy-windows-1252")


def _read(text: str, encoding: str) -> str:
    """The text with every misdecoded line decoded in `encoding`; "" where one of them is invalid in it."""
    out, at = [], 0
    for segment in _SEGMENT.finditer(text):
        out.append(text[at : segment.start()])
        at = segment.end()
        for line in segment[0].splitlines(keepends=True) if "\n" in segment[0] else [segment[0]]:
            meant = line if line.isascii() else _line(line, encoding)
            if meant is None:
                return ""
            out.append(meant)
    return "".join([*out, text[at:]])


def _line(line: str, encoding: str) -> str | None:
    try:
        octets = _octets(line)
        meant = octets.decode(encoding)
        if encoding == "big5" and octets.decode("cp950", "replace") != meant:
            return None  # two readings of one sign
        return meant if meant.encode(encoding) == octets else None
    except UnicodeError:
        return None


def _score(meant: str, encoding: str) -> float:
    """Share of the most frequent Chinese characters; 0 where too many are rare, or fewer than two of those occur."""
    far = [c for c in meant if not c.isascii() and c not in _WINDOWS]
    usual = sum(c in _usual(encoding) for c in far)
    if len(far) < 2 or usual < 0.85 * len(far) - (len(far) > 4):
        return 0.0
    frequent = sum(c in _frequent() for c in far)
    return frequent / len(far) if len(_frequent().intersection(far)) > 1 else 0.0


# --- texts about it ---

_WORDS = re.compile(
    r"(?<![a-z])(?:utf-?(?:8|16|32)|latin-?1|iso-?8859|cp-?\d{3,4}|windows-125\d|gbk|gb ?2312|gb ?18030|big-?5"
    r"|shift-?jis|mojibake|encodings?|misencod(?:ed|ing)|charsets?|character sets?|code ?pages?|unicode)"
    r"(?![a-z])"
    r"|U\+[0-9A-F]{4}|乱码|亂碼|编码|編碼|解码|解碼|字符集|字元集",
    re.IGNORECASE,
)
_UNIT = re.compile(r"[^\s,.;:!?()\[\]\"'“”‘’„«»…，。；：！？（）、《》【】「」]+")


def is_subject(before: Sequence[str], after: Sequence[str]) -> bool:
    """Whether texts are about wrong encodings: by a keyword, or since a wrong form stands beside its correct form.

    >>> is_subject(["naÃ¯ve or naïve?"], ["naïve or naïve?"]), is_subject(["a naÃ¯ve there"], ["a naïve there"])
    (True, False)
    """
    if any(map(_WORDS.search, before)):
        return True
    had = Counter(unit for text in before for unit in _UNIT.findall(text))
    has = Counter(unit for text in after for unit in _UNIT.findall(text))
    alone = any(not any(c.isascii() for c in unit) for unit in had - has)  # a wrong form is a word by itself
    return any(
        unit in had and (len(unit) > 1 or alone) and not unit.isascii() and any(c.isalpha() for c in unit)
        for unit in has - had
    )
