"""Text repair: Unicode normalisation, mojibake, left-over markup. Sound text stays as it is.

Each repair has a cheap pre-check, so that clean text costs next to nothing.
"""

from __future__ import annotations

import html
import re
import unicodedata
from codecs import getincrementaldecoder
from collections.abc import Sequence
from functools import cache
from html.entities import html5
from typing import Any

from tuneloop.data.cleaning import misread

_BREAKS = "\x0b\x0c\x1c\x1d\x1e"
"""Vertical tab, form feed, and the separators of files, groups and records: each is a line break."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ASCII_CONTROL: dict[int, str | None] = {
    **{n: None for n in (*range(0x20), 0x7F) if n not in (9, 10)}, **{ord(c): "\n" for c in _BREAKS}, 0x1F: " ",
}  # fmt: skip
_RETURN = re.compile(r"(?:_x000D_)+(?=\n|\Z)")
"""A carriage return at a line's end as Excel writes it, in what was exported from a workbook."""
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
"""An escape sequence of a terminal: colours, the cursor, a window's title (ECMA-48)."""


def normalised(text: str) -> str:
    r"""The text in NFC, with \n as line ends, without terminal escapes and control characters but \n and tab.

    >>> normalised("a\r\nb\x00\u0065\u0301"), normalised("one\ftwo\x85three\x1ffour"), normalised("\x1b[31mred\x1b[0m")
    ('a\nbé', 'one\ntwo\nthree four', 'red')
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\x1b" in text:
        text = _TERMINAL.sub("", text)
    if "_x000D_" in text:
        text = _RETURN.sub("", text)
    if text.isascii():
        return text.translate(_ASCII_CONTROL)
    return unicodedata.normalize("NFC", _CONTROL.sub(_control, text))


def _control(match: re.Match[str]) -> str:
    """The replacement of a control character. A C1 control beside a Latin-1 letter is a misdecoded byte, and stays."""
    sign, text = match[0], match.string
    if sign < "\x80":
        return _ASCII_CONTROL[ord(sign)] or ""
    beside = text[max(match.start() - 1, 0) : match.start()] + text[match.end() : match.end() + 1]
    if any("\x80" <= c <= "\xff" for c in beside) or misread.is_bytes(text):
        return sign
    return "\n" if sign == "\x85" else ""


# --- wrong encodings ---


def _decoded(octets: bytes, encoding: str) -> str:
    """The characters of the byte pairs; invalid pairs are left out."""
    return "".join(octets[n : n + 2].decode(encoding, "ignore") for n in range(0, len(octets), 2))


def _pairs(leads: Sequence[int], tails: Sequence[int]) -> bytes:
    return bytes(b for lead in leads for tail in tails for b in (lead, tail))


@cache
def gbk_leads() -> str:
    """The characters that the first two UTF-8 bytes of Chinese characters, punctuation and emoji give in GBK.

    >>> all(c in gbk_leads() for c in "浣锛銆鈥馃")
    True
    """
    tails = range(0x80, 0xC0)
    octets = _pairs(range(0xE4, 0xEA), tails) + bytes.fromhex("e280e380efbcefbdf09f")
    return _decoded(octets, "gb18030")


@cache
def _common() -> frozenset[str]:
    """The common characters of Chinese text: the 3755 of GB 2312's first level, punctuation, ASCII."""
    first_level = _decoded(_pairs(range(0xB0, 0xD8), range(0xA1, 0xFF)), "gb2312")
    return frozenset(first_level + "，。！？、；：“”‘’（）《》【】…—·～–￥" + bytes(range(0x20, 0x7F)).decode())


@cache
def _latin_gate() -> re.Pattern[str]:
    """A pattern that UTF-8 or GBK decoded in a one-byte encoding must match (the pre-check).

    In UTF-8 a lead byte (C2-F4) has a further byte (80-BF) behind it, each read as that encoding's character. The
    second may have been lost: then it is a blank, "?" or U+FFFD. In GBK there are four such characters in a row.
    """
    from ftfy.chardata import CHARMAP_ENCODINGS

    may_lose = bytes([*range(0xC2, 0xC6), 0xCE, 0xD0, 0xD9, *range(0xE0, 0xE4), 0xF0])
    rows: dict[tuple[str, str], None] = {}
    for encoding in CHARMAP_ENCODINGS:
        lead, tail = bytes(range(0xC2, 0xF5)).decode(encoding), bytes(range(0x80, 0xC0)).decode(encoding)
        rows[lead, tail + "\ufffd"] = None
        if encoding != "macroman":
            rows[may_lose.decode(encoding), " ?"] = None
    first = "".join(sorted({c for lead, _ in rows for c in lead}))
    ways = [f"(?<=[{lead}])[{tail}]" for lead, tail in rows]
    ways += [r"(?<=[\xa1-\xff])[\xa1-\xff]{3}", r"(?<=[\x80-\x9f])", r"(?<=[\xa4-\xc6])[@-~][\xa1-\xf9][@-~\xa1-\xfe]"]
    return re.compile(rf"[\x80-\x9f\xa1-\xff{first}](?:{'|'.join(ways)})")


@cache
def _gbk_gate() -> re.Pattern[str]:
    """A pattern that UTF-8 decoded as GBK must match (the pre-check)."""
    return re.compile(f"[{gbk_leads()}][^\x00-\x7f]")


@cache
def _config() -> Any:
    """ftfy's configuration: encoding repair only."""
    from ftfy import TextFixerConfig

    return TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        fix_surrogates=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )


def mojibake(text: str) -> str:
    """The text with mojibake repaired; sound text stays the very same.

    UTF-8 decoded in a one-byte encoding is repaired by ftfy; UTF-8 decoded as GBK here; GBK and Big5 decoded as Latin-1
    in `misread`. Characters with missing bytes become U+FFFD.

    >>> mojibake("Ã¼ber"), mojibake("浣犲ソ"), mojibake("it鈥檚"), mojibake("ÄãºÃ£¬ÊÀ½ç")
    ('über', '你好', 'it’s', '你好，世界')
    """
    if text.isascii():
        return text
    for _ in range(4):  # a text may have gone through it twice
        repaired = text
        if _gbk_gate().search(repaired):
            repaired = _RUN.sub(_from_gbk, repaired)
        if _latin_gate().search(repaired):
            repaired = _from_one_byte(repaired)
        if repaired == text:
            break
        text = repaired
    return text


_NEXT_LINE = re.compile(r"(?<=[^\s\x80-\xff])\x85(?=\w)(?![\x80-\xff])")
_CAPITAL = re.compile(r"Ã |(?<!\S)Â ")
_C1 = re.compile("[\x80-\x9f]")
_OTHER_C1 = re.compile("[\x80-\x84\x86-\x9f]")


def _from_one_byte(text: str) -> str:
    """The text repaired by `misread.chinese`, else by ftfy.

    Misdecoded bytes of which ftfy repairs only a few stay as they are: their encoding is another one. A NEL (85)
    between two words is a line break, no ellipsis of Windows-1252; a lone Ã before a blank is a letter of Portuguese.
    """
    if "\x85" in text and _NEXT_LINE.search(text) and not _OTHER_C1.search(text):
        return "\x85".join(_repaired(part) for part in _NEXT_LINE.split(text))
    return _repaired(text)


def _repaired(text: str) -> str:
    from ftfy import fix_text

    meant = misread.chinese(text)
    if meant is not text:
        return meant
    if _CAPITAL.search(text) and fix_text(bare := _CAPITAL.sub("A ", text), _config()) == bare:
        return text
    fixed: str = fix_text(text, _config())
    windows = _C1.search(text) and not misread.is_bytes(text)  # its quotes and dashes, read as Latin-1
    return fixed if fixed == text or windows or misread.is_utf8(text, fixed) else text


_RUN = re.compile(r"[^\x00-\x7f]{2,}\??")


def _share(text: str) -> float:
    """Share of common Chinese characters and emoji."""
    return sum(c in _common() or c >= "\U0001f000" for c in text) / len(text)


def _from_gbk(run: re.Match[str]) -> str:
    """Repair UTF-8 decoded as GBK: hardly any sound Chinese encoded in GBK is valid UTF-8 with more common characters.

    A character with missing bytes becomes U+FFFD.
    """
    text = run[0]
    end = "?" if text[-1] == "?" else ""
    try:
        octets = b"\xff".join(_as_gbk(part) for part in text.removesuffix("?").split("\ufffd"))
    except UnicodeEncodeError:
        return text
    try:
        meant = octets.decode("utf-8") + end
    except UnicodeDecodeError:
        lossy = octets + b"\xff" * len(end)
        if b"\xff" not in lossy:
            return text
        meant = re.sub("\ufffd+", "\ufffd", lossy.decode("utf-8", "replace"))
        if meant.count("\ufffd") > text.count("\ufffd") + len(end):
            return text
    return meant if _share(meant) >= 0.75 and _share(text) <= 0.5 else text


def _as_gbk(text: str) -> bytes:
    """The original bytes of a text that was decoded as GBK. A euro sign is GBK's two bytes or the byte 80 of Windows:
    whichever gives the more common characters in UTF-8."""
    first, *parts = (part.encode("gb18030") for part in text.split("€"))
    utf8 = getincrementaldecoder("utf-8")("replace")
    utf8.decode(first)
    octets = [first]
    for part in parts:
        before = utf8.getstate()
        candidates = []
        for euro in (b"\x80", b"\xa2\xe3"):
            utf8.setstate(before)
            odd = sum(c not in _common() for c in utf8.decode(euro + part))
            candidates.append((odd, euro, utf8.getstate()))
        _, euro, after = min(candidates, key=lambda way: way[0])
        utf8.setstate(after)
        octets += [euro, part]
    return b"".join(octets)


# --- markup ---

_BLOCK = (
    "p|div|section|article|aside|header|footer|nav|main|center|blockquote|ul|ol|li|dl|dt|dd|h[1-6]|hr|table|thead"
    "|tbody|tfoot|tr|html|head|body|figure|figcaption|iframe|noscript"
)
_INLINE = "a|b|i|em|strong|font|span|img|big|small|tt|td|th|link|meta|nobr|wbr|col|colgroup"
_ATTRIBUTES = r"""(?:\s+[\w:-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>]+)|\s+(?:nowrap|noshade|hidden|async|defer))*\s*/?"""
_TAG = re.compile(rf"</?(?:{_BLOCK}|{_INLINE}|br|title|script|style){_ATTRIBUTES}>", re.IGNORECASE)
_BREAK = re.compile(r"</?br\s*/?>", re.IGNORECASE)
_PAIR = re.compile(rf"<({_BLOCK}|{_INLINE})(?:\s[^<>]*)?>.{{0,2000}}?</\1\s*>", re.IGNORECASE | re.DOTALL)
_WITH_VALUE = re.compile(rf"""<(?:{_BLOCK}|{_INLINE})\s+[\w:-]+\s*=\s*["'][^<>]*>""", re.IGNORECASE)
_RUN_OF_BLOCKS = re.compile(
    rf"</?(?:{_BLOCK}|br){_ATTRIBUTES}>(?:\s*</?(?:{_BLOCK}|br){_ATTRIBUTES}>)*\s*", re.IGNORECASE
)
_FAR = re.compile(r"<br.*<br|</(?:p|h\d|table|ul|ol|blockquote)\b|\n\s*\n", re.IGNORECASE | re.DOTALL)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][\da-fA-F]{1,6}|[A-Za-z]{2,8}[1-4]{0,2});")
_APART = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|(?<!\w)`(?=\S)[^`\n]*(?<=\S)`(?!\w)|^[ \t]*\|[^\n]*$"
    r"|<(?:script|style)\b[^<>]*>|<!--|<!doctype\b[^<>]*>",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)
"""Code, a row of a Markdown table, or the start of a script, style or comment."""
_END = {"<scr": re.compile(r"</script\s*>", re.IGNORECASE), "<sty": re.compile(r"</style\s*>", re.IGNORECASE),
        "<!--": re.compile("-->")}  # fmt: skip
_QUOTED = re.compile(
    r"</?[a-z][^<>]*>[\"'”’`]?\s*(?:tag|element|标签|元素)|[\"'“‘]</?[a-z]\w*\s*/?>[\"'”’]", re.IGNORECASE
)
_MARKUP_WORDS = re.compile(
    r"(?<![a-z])(?:x?html5?|xml|css3?|jsx|svg|javascript|markup)(?![a-z])|标签|转义", re.IGNORECASE
)
_CODE_WORDS = re.compile(
    r"(?<![a-z])(?:web|website|webpage|webshop|front-?end|back-?end|code|coding|script|function|snippet|component|react|vue"
    r"|angular|python|java|php|django|flask|jquery|bootstrap|markdown|template|parser?|regex)(?![a-z])"
    r"|网页|网站|页面|前端|后端|代码|编程|程序|脚本|函数|组件|正则",
    re.IGNORECASE,
)


def has_markup(text: str) -> bool:
    """Whether there may be a tag or an entity (the pre-check)."""
    return ("<" in text and _TAG.search(text) is not None) or has_entity(text)


def has_entity(text: str) -> bool:
    """Whether there may be an entity such as &amp;."""
    return "&" in text and _ENTITY.search(text) is not None


def _parts(text: str) -> list[str]:
    """The text split at code, table rows and scripts: prose at even places, these at odd ones, prose last."""
    parts, at, begin, endless = [], 0, 0, set()
    while apart := _APART.search(text, begin):
        begin = apart.end()
        kind = apart[0][:4].lower()
        if kind in _END:
            end = None if kind in endless else _END[kind].search(text, begin)
            if end is None:
                endless.add(kind)  # nor has any later one: looked for once only
                continue
            begin = end.end()
        parts += [text[at : apart.start()], text[apart.start() : begin]]
        at = begin
    return [*parts, text[at:]]


def talks_of_markup(texts: Sequence[str], dialogue: bool) -> bool:
    """Whether the texts are about markup, so that none of it is left over.

    Code in backticks with tags in it, or tags in quotes, say so; so do words such as HTML, but not in a review whose
    only tag is <br>. In a dialogue with more tags, words about programming do too: somebody may have asked for a page.
    """
    inside, outside = [], []
    for text in texts:
        parts = _parts(text)
        inside += [part for part in parts[1::2] if part[0] in "`~"]
        outside += parts[::2]
    if any(map(has_markup, inside)) or any(map(_QUOTED.search, outside)):
        return True
    more = any(_TAG.search(_BREAK.sub("", part)) for part in outside)
    words = [*inside, *(_TAG.sub("", part) for part in outside)]
    if (dialogue or more) and any(map(_MARKUP_WORDS.search, words)):
        return True
    return dialogue and more and any(map(_CODE_WORDS.search, words))


def without_markup(text: str) -> str:
    r"""The text without left-over tags and entities: <br> and paragraphs become line breaks.

    Only names that HTML has, only where a break, a pair or a value shows that it is markup, never inside backticks or
    a Markdown table.

    >>> without_markup("Fine.<br /><br />It&#39;s&nbsp;<b>good</b>. `<b>`")
    "Fine.\n\nIt's good. `<b>`"
    >>> without_markup("if a <b and c> d: List<i> <think>")
    'if a <b and c> d: List<i> <think>'
    """
    parts = _parts(text)
    parts[::2] = [_unescaped(part) for part in parts[::2]]
    outside = "\n".join(parts[::2])
    pages = [part[0] == "<" for part in parts[1::2]]
    if not any(pages) and not any(pattern.search(outside) for pattern in (_BREAK, _PAIR, _WITH_VALUE)):
        return "".join(parts)
    parts[::2] = [_TAG.sub(_inline, _lined(part)) for part in parts[::2]]
    parts[1::2] = ["" if page else part for page, part in zip(pages, parts[1::2], strict=True)]
    return "".join(parts).strip()


def _unescaped(text: str) -> str:
    for _ in range(3):
        once = _ENTITY.sub(_character, text)
        if once == text:
            break
        text = once
    return text


def _character(entity: re.Match[str]) -> str:
    name = entity[0]
    if name[1] != "#" and name[1:] not in html5:
        return name
    return html.unescape(name).replace("\xa0", " ")


def _lined(text: str) -> str:
    """The text with each run of block tags as one line break; two <br> or a closed block as a blank line."""
    out, at = [], 0
    for run in _RUN_OF_BLOCKS.finditer(text):
        before = text[at : run.start()].rstrip()
        blank = text[at + len(before) : run.start()]
        out += [before, "\n\n" if _FAR.search(blank + run[0]) else "\n"]
        at = run.end()
    return "".join([*out, text[at:]])


def _inline(tag: re.Match[str]) -> str:
    return " " if tag[0][1:3].lower() in ("td", "th") else ""
