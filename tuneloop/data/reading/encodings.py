"""Encoding detection from the bytes of a text, and decoding.

UTF-8, UTF-16 and UTF-32 are recognised by their byte order mark and by being valid. Legacy encodings accept nearly all
bytes: there letter frequencies of the decoded text decide, and an implausible text is refused.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from tuneloop.base.errors import DataError
from tuneloop.base.language import t
from tuneloop.data.reading import containers
from tuneloop.data.reading.containers import Blob

_BLOCK = 1 << 20
FEW = 4
"""Fewest non-ASCII characters by which a legacy encoding is detected, except a Western one."""
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_NO_TEXT = ("idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape", "utf-7")
FREQUENT_HANZI = frozenset(
    "的一是了我不在人有他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天而能好都然没日"
    "于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现分将外但身些与高意进法此实回二理美点月明"
    "其种声全工己话儿者向情部正名定女问力机给等几很业最间新什打便位因重被走电四第门相次东政海口使教西再平真听世气信北少关并内加化"
    "這來個國說們為時會著過學對裡後麼沒於還發當無開經頭從動兩長樣現將與進實點種聲話兒問機給幾業間電門東聽氣關並內嗎讓應該"
)
"""The most frequent characters of Chinese in both scripts, about a half of any text."""
_PUNCTUATION = frozenset("，。？！、：；“”‘’（）《》「」『』【】—…·～　％－")
_LATIN = frozenset("àâäáãåæçèéêëìíîïñòóôõöøœùúûüýÿßšžÀÂÄÁÃÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØŒÙÚÛÜÝŠŽ")
_SIGNS = frozenset("’‘“”„«»‹›–—…€£¥§©®™°±²³µ·¿¡ªº¼½¾×÷ \u00a0\u00ad№")


@dataclass(frozen=True, slots=True)
class Script:
    """Letter frequencies of a script, and the legacy codecs that write it.

    `frequent` letters are at least the share `least`, and usually `usual`, of the non-ASCII characters.
    """

    codecs: tuple[str, ...]
    letters: tuple[tuple[str, str], ...]
    """Ranges; at least nine in ten characters beyond ASCII are in them, or are punctuation."""
    frequent: frozenset[str]
    least: float
    usual: float

    def score(self, text: str) -> float:
        """Share of frequent letters among the non-ASCII characters, times the share of plausible ones.

        0 where the text is not of this script, or too short to tell.
        """
        far = [c for c in text if not c.isascii()]
        if len(far) < FEW:
            return 0.0
        good = sum(c in _PUNCTUATION or c in _SIGNS or any(a <= c <= b for a, b in self.letters) for c in far)
        share = sum(c in self.frequent for c in far) / len(far)
        return share * good / len(far) if good >= 0.9 * len(far) and share >= self.least else 0.0


_CJK = (("\u4e00", "\u9fff"), ("\u3000", "\u303f"), ("\uff00", "\uffef"))
_KANA = frozenset(chr(c) for c in range(0x3041, 0x30FF))
_SCRIPTS = (
    Script(("gb18030", "big5", "cp950", "big5hkscs"), _CJK, FREQUENT_HANZI | frozenset("，。"), 0.1, 0.4),
    Script(("cp932", "euc_jp"), (*_CJK, ("\u3041", "\u30ff")), _KANA, 0.25, 0.5),
    Script(("cp949",), (("\uac00", "\ud7a3"),), frozenset("이다는의에을를가고은하지로한도기서사리어아시자"), 0.2, 0.4),
    Script(("cp1251", "koi8_r", "mac_cyrillic", "iso8859_5", "cp866"),
           (("А", "я"), ("Ё", "Ё"), ("ё", "ё"), ("і", "ї"), ("є", "є")), frozenset("оеаинтсрвлямп"), 0.45, 0.72),
    Script(("iso8859_7", "cp1253"), (("Ά", "ώ"),), frozenset("αοιετσηνρυκπλάίόέήύώς"), 0.5, 0.85),
)  # fmt: skip


def named(name: str, where: str) -> str:
    """The codec that the recipe names; raises TL-DATA-ENCODING-NAME."""
    try:
        codec = codecs.lookup(name)
        "".encode(name)
    except (LookupError, ValueError, TypeError) as error:
        raise DataError("TL-DATA-ENCODING-NAME", where=where, name=name) from error
    if not getattr(codec, "_is_text_encoding", True) or codec.name in _NO_TEXT:
        raise DataError("TL-DATA-ENCODING-NAME", where=where, name=name)
    return codec.name


def detect(blob: Blob, head: bytes) -> str:
    """The encoding of all of the bytes; `head` are the first 4096 of them.

    The name of a codec, or "utf-8+gb18030" where some lines are in the one and some in the other. A few broken lines in
    UTF-8 are allowed: they go to the ledger row by row. Raises TL-DATA-ENCODING.
    """
    marked = next((name for bom, name in _MARKS if head.startswith(bom)), "")
    try:
        if marked.startswith("utf-16") or marked == "utf-32":
            _must_decode(blob, marked)
            return marked
        if b"\0" in head:
            for name in ("utf-16-le", "utf-16-be"):
                if _plausible_utf16(head, name):
                    _must_decode(blob, name)
                    return name
    except UnicodeError as error:
        raise DataError("TL-DATA-ENCODING", where=blob.where, error=str(error)) from error
    return marked or _eight_bit(blob)


def _must_decode(blob: Blob, encoding: str) -> None:
    """Raise UnicodeDecodeError unless all of the bytes are in `encoding`."""
    with closing(blob.open()) as raw, io.TextIOWrapper(raw, encoding, newline="") as handle:
        while handle.read(_BLOCK):
            pass


def _plausible_utf16(head: bytes, encoding: str) -> bool:
    text = head[: len(head) // 2 * 2].decode(encoding, "replace")
    return sum(_is_usual(c) for c in text) >= 0.9 * len(text)


def _is_usual(c: str) -> bool:
    """Whether a character is common in texts; a wrong byte order gives others."""
    if c.isascii():
        return c.isprintable() or c in "\r\n\t"
    high = "\u2010" <= c <= "\u206f" or "\u3000" <= c <= "\u9fff" or "\uff00" <= c <= "\uffef"
    return high or (c.isalpha() and c < "\u0600")


@dataclass(slots=True)
class _Survey:
    """Line counts: ASCII, UTF-8 (`good`), neither (`bad`); the number of the first bad line, and bytes of some."""

    ascii: int = 0
    good: int = 0
    bad: int = 0
    first: int = 0
    sample: bytes = b""

    def add(self, line: bytes) -> None:
        if line.isascii():
            self.ascii += 1
            return
        try:
            line.decode("utf-8")
            self.good += 1
        except UnicodeDecodeError:
            self.bad += 1
            self.first = self.first or self.ascii + self.good + self.bad
            self.sample += line[:8192] if len(self.sample) < 1 << 16 else b""


def _survey(blob: Blob) -> _Survey:
    """The counts of all lines, read in blocks; a line longer than a block counts once a block."""
    seen = _Survey()
    with closing(blob.open()) as handle:
        while block := handle.read(_BLOCK):
            block += handle.readline(_BLOCK)
            if not block.endswith(b"\n"):
                block += handle.read(_unfinished(block))
            lines = block.split(b"\n")
            lines = lines if lines[-1] else lines[:-1]
            if block.isascii():
                seen.ascii += len(lines)
                continue
            for line in lines:
                seen.add(line)
    return seen


def _unfinished(block: bytes) -> int:
    """How many bytes are missing of a UTF-8 character at the end.

    >>> [_unfinished("é好".encode()[:n]) for n in (1, 2, 3, 4, 5)]
    [1, 0, 2, 1, 0]
    """
    for back in range(1, min(4, len(block)) + 1):
        byte = block[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return max(length - back, 0)
        if byte < 0x80:
            break
    return 0


def _eight_bit(blob: Blob) -> str:
    seen = _survey(blob)
    if not seen.bad:
        return "utf-8"
    legacy = guess(seen.sample)
    few = seen.bad <= 0.1 * (seen.good + seen.ascii)
    if legacy and not seen.good:
        return legacy
    if legacy and (seen.bad > 0.1 * seen.good or legacy in _SCRIPTS[0].codecs):
        return f"utf-8+{legacy}"
    if few or seen.bad <= 0.1 * seen.good:
        return "utf-8"
    n = seen.ascii + seen.good + seen.bad
    error = t("{bad} of {n} lines are not UTF-8, nor plausible text of another encoding", bad=seen.bad, n=n)
    raise DataError("TL-DATA-ENCODING", where=f"{blob.where}:{seen.first}", error=error)


def guess(sample: bytes) -> str:
    """The legacy encoding in which these bytes are plausible text, or "".

    >>> guess("早餐的种类不多，我觉得一般。".encode("gbk")), guess("Le déjeuner".encode("latin-1")), guess(b"\\xff")
    ('gb18030', 'cp1252', '')
    """
    cjk = _best(sample, _SCRIPTS[:3])
    if cjk:
        return cjk
    return "cp1252" if _is_western(_decoded(sample, "cp1252")) else _best(sample, _SCRIPTS[3:])


def _best(sample: bytes, scripts: tuple[Script, ...]) -> str:
    """The codec whose text has the share of frequent letters that its script usually has, or most of it."""
    scores = [
        (script.score(_decoded(sample, name)) / script.usual, -n, name)
        for script in scripts
        for n, name in enumerate(script.codecs)
    ]
    score, _, name = max(scores)
    return name if score else ""


def _decoded(sample: bytes, codec: str) -> str:
    """The sample as text, or nothing where more than a hundredth of it does not decode."""
    text = sample.decode(codec, "surrogateescape")
    lost = sum("\udc80" <= c <= "\udcff" for c in text)
    far = sum(not c.isascii() for c in text)
    return "" if lost > 0.01 * far else text


def _is_western(text: str) -> bool:
    """Words in Latin letters, some with accents inside words, and typographer's signs."""
    far = [n for n, c in enumerate(text) if not c.isascii()]
    letters = [n for n in far if text[n] in _LATIN]
    near = sum(_in_word(text, n) for n in letters)
    known = sum(text[n] in _LATIN or text[n] in _SIGNS for n in far)
    words = sum(c.isalpha() for c in text)
    return bool(far) and known >= 0.95 * len(far) and near >= 0.6 * len(letters) and len(letters) <= 0.35 * words


def _in_word(text: str, at: int) -> bool:
    """Whether a letter stands near plain ones, and is no capital after a small one."""
    before, near = text[at - 1 : at], text[max(at - 2, 0) : at + 3]
    return any(c.isascii() and c.isalpha() for c in near) and not (text[at].isupper() and before.islower())


def lines(blob: Blob, encoding: str, newline: str | None = None) -> Iterator[str]:
    """The lines of the text. Bytes that are not in the encoding become lone surrogates, which are found row by row.

    Raises TL-DATA-ROW-LONG with the number of a line of more than ROW characters, before it is read whole.
    """
    limit = containers.ROW
    with closing(blob.open()) as raw:
        if "+" in encoding:
            source = iter(lambda: raw.readline(limit + 1), b"")
            texts = (_either(line, encoding.partition("+")[2], newline) for line in source)
            yield from _bounded(texts, blob)
            return
        with io.TextIOWrapper(raw, encoding, _errors(encoding), newline) as handle:
            read = handle.readline
            yield from _bounded(iter(lambda: read(limit + 1), ""), blob)


def _bounded(texts: Iterator[str], blob: Blob) -> Iterator[str]:
    for number, line in enumerate(texts, 1):
        if len(line) > containers.ROW:
            raise DataError("TL-DATA-ROW-LONG", where=f"{blob.where}:{number}", limit=containers.ROW >> 20)
        yield line


def chunks(blob: Blob, encoding: str, size: int = 1 << 17) -> Iterator[str]:
    """The text in pieces of about `size` characters."""
    if "+" in encoding:
        yield from lines(blob, encoding)
        return
    with closing(blob.open()) as raw, io.TextIOWrapper(raw, encoding, _errors(encoding)) as handle:
        while piece := handle.read(size):
            yield piece


def _errors(encoding: str) -> str:
    return "strict" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"


def _either(line: bytes, legacy: str, newline: str | None) -> str:
    """One line of a file in two encodings: UTF-8 if it can be, else the other, else UTF-8 with its faults marked."""
    for codec in ("utf-8", legacy):
        try:
            text = line.decode(codec)
            break
        except UnicodeDecodeError:
            continue
    else:
        text = line.decode("utf-8", "surrogateescape")
    return text.replace("\r\n", "\n") if newline is None else text
