"""Quality filters for answers: repetition, refusals, gibberish.

Each function has a cheap pre-check, and counts exactly only where it hits: clean text costs microseconds.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal

from tuneloop.data.cleaning.repair import gbk_leads

# --- repetition ---

_UNIT = re.compile(r"[A-Za-z\u00c0-\u024f\u0400-\u04ff0-9']+|[^\s\w]|\w")
_LONGEST = 50_000
"""Characters of a text that are read."""
_AT_LEAST = 60
"""Shorter texts may repeat themselves: laughter, a refrain."""
_TIMES = 4
_WORDS, _CHARACTERS = 6, 12
"""Length of an n-gram: in words, or in characters where words have no spaces (Chinese)."""


def repetition(text: str) -> float:
    """Share of a text, from 0 to 1, that lies in n-grams which occur four times or more.

    >>> repetition("Eat a banana! " * 20), repetition("All happy families are alike; each unhappy one in its own way.")
    (1.0, 0.0)
    """
    text = text[:_LONGEST]
    if len(text) < _AT_LEAST or not _recurs(text):
        return 0.0
    units = _UNIT.findall(text)
    if not any(unit.isalnum() for unit in units):
        return 0.0  # rulers and boxes
    n = _WORDS if sum(map(len, units)) > 2 * len(units) else _CHARACTERS
    if len(units) < 2 * n:
        n = 2
    grams = [tuple(units[at : at + n]) for at in range(len(units) - n + 1)]
    often = {gram for gram, count in Counter(grams).items() if count >= _TIMES}
    covered = bytearray(len(units))
    for at, gram in enumerate(grams):
        if gram in often:
            covered[at : at + n] = b"\x01" * n
    return covered.count(1) / len(units)


def _recurs(text: str) -> bool:
    """Whether one of eight substrings occurs four times: a repetition that covers half of the text has one of them."""
    size = 24 if text.isascii() else 10
    step = max(1, (len(text) - size) // 8)
    return any(text.count(text[at : at + size]) >= _TIMES for at in range(step // 2, len(text) - size, step))


_PART = re.compile(r"[\u3400-\u9fff\u3040-\u30ff]|[^\W_]+(?:['’.,][^\W_]+)*")
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_TAIL = 2_000
"""Characters of an answer's end that are read: generation loops at its end."""
_SENTENCE, _PHRASE = 10, 5
"""Words or Chinese characters from which a phrase may not occur twice in a row; the second holds within a line."""


def loops(text: str) -> bool:
    """Whether an answer loops: the same word three times in a row, or the same phrase or sentence twice.

    A short word may come three times and a Chinese character five times, as laughter and emphasis do. Code is left out,
    and so are punctuation, case, and what is digits alone.

    >>> loops("用 tuneloop tuneloop tuneloop"), loops("叫小助手，小助手，小助手。"), loops("No. No! No, no.")
    (True, True, True)
    >>> loops("哈哈哈，慢慢来，一步一步走。"), loops("1 | 1 | 1 | 1 | 1"), loops("It is very, very good.")
    (False, False, False)
    """
    prose = _CODE.sub("\n", text[-_TAIL:]).lower()
    return _recurring(_PART.findall(prose), _SENTENCE) or any(
        _recurring(_PART.findall(line), _PHRASE) for line in prose.splitlines()
    )


def _recurring(parts: list[str], twice: int) -> bool:
    """Whether a phrase recurs in a row too often; from `twice` words on, twice is too often."""
    for period in range(1, len(parts) // 2 + 1):
        run = 0
        for at in range(period, len(parts)):
            run = run + 1 if parts[at] == parts[at - period] else 0
            enough = run and run >= period * (_times(parts[at], period, twice) - 1)
            if enough and not all(part.isdigit() for part in parts[at - period + 1 : at + 1]):
                return True
    return False


def _times(word: str, period: int, twice: int) -> int:
    """Occurrences in a row that make a phrase of `period` words that ends in `word` a loop."""
    if period > 1:
        return 3 if period < twice else 2
    return 3 if len(word) >= 6 else 4 if word.isascii() or len(word) > 1 else 6


# --- refusal ---

_CANNOT = (
    r"(?:i|we)(?:[’']m| am)? (?:can(?:no|'|’)?t|can not|unable to|not able to|won[’']t|will not|do(?:n[’']t| not) have"
    r"|(?:am )?not (?:programmed|capable|allowed))"
)
_HELP = "help|assist|provide|fulfil|comply|answer|do that|create|generate|support|discuss|engage|write|browse|access"
_REFUSAL = re.compile(
    r"(?:(?:i[’']m|i am) (?:\w+ )?sorry|sorry|i apologi[sz]e|my apologies|unfortunately|regrettably)"
    rf"[^.!?\n]{{0,60}}?\b{_CANNOT}"
    rf"|as an? (?:ai|artificial|large|language|virtual|digital|machine)\b[^.!?\n]{{0,60}}?\b{_CANNOT}"
    rf"|{_CANNOT} (?:{_HELP})"
    r"|[非常很十分真的]{0,2}(?:抱歉|对不起|遗憾)[^。！？!?\n]{0,24}?(?:我|本人|系统)[^。！？!?，,\n]{0,8}?"
    r"(?:无法|不能|没办法|没有办法)(?!忍)"
    r"|(?:作为|身为)[一个名款位]{0,2}[^。！？!?，,\n]{0,8}(?:AI|人工智能|语言模型|机器人|智能)[^。！？!?\n]{0,30}?"
    r"(?:无法|不能|没有能力|不具备|没有[^。！？!?，,\n]{0,8}能力)"
    r"|我(?:目前|暂时|现在|还|并)?(?:无法|不能|没办法)(?:为您|为你|给您|给你|直接)?"
    r"(?:回答|提供|协助|帮助|满足|完成|执行|参与|讨论|生成|访问)"
    r"|[非常很十分真的]{0,2}(?:抱歉|对不起)[，,]?(?:无法|不能)",
    re.IGNORECASE,
)


def refuses(answer: str) -> bool:
    """Whether an answer begins with a refusal, in English or Chinese.

    >>> refuses("As an AI language model, I can't help with that."), refuses("作为一个AI语言模型，我无法回答。")
    (True, True)
    >>> refuses("I'm sorry you feel that way. Let's talk."), refuses("对不起，让你久等了！")
    (False, False)
    """
    return _REFUSAL.match(answer[:200].lstrip(" \t\n\"'“*#>")) is not None


# --- gibberish ---

Fault = Literal["", "lost characters", "wrong encoding", "keyboard noise"]

_LOST = re.compile("[\ufffd\ue000-\uf8ff]")
_LEAD = re.compile(f"[{gbk_leads()}]")
_GATE = re.compile(f"[\ufffd\ue000-\uf8ff{gbk_leads()}]")
_WRONG = ("锟斤拷", "斤拷锟", "烫烫烫", "屯屯屯", "锘匡豢")
"""Signatures of mojibake: U+FFFD or a byte order mark decoded as GBK, uninitialised memory of Windows programs."""


def lost(text: str) -> Fault:
    """Why characters of the text cannot be recovered: "lost characters", "wrong encoding", or "".

    >>> lost("锟斤拷锟斤拷"), lost("a \\ufffd\\ufffd b"), lost("锛氬浘鐗?鐨勬"), lost("你好")
    ('wrong encoding', 'lost characters', 'wrong encoding', '')
    """
    if text.isascii():
        return ""
    if any(sign in text for sign in _WRONG):
        return "wrong encoding"
    if not _GATE.search(text):
        return ""
    leads = len(_LEAD.findall(text))
    if leads >= 3 and leads * 6 >= sum(c > "\x7f" for c in text):
        return "wrong encoding"
    return "lost characters" if len(_LOST.findall(text)) >= 2 else ""


_CONSONANTS = re.compile("[bcdfghjklmnpqrstvwxz][bcdfghjklmnpqrstvwxz]{5}")
_ROWS = tuple(
    row[at : at + 4]
    for line in ("qwertyuiop", "qwertzuiop", "asdfghjkl", "zxcvbnm")
    for row in (line, line[::-1])
    for at in range(len(line) - 3)
    if row[at : at + 4] not in ("wert", "erty", "ertz", "wert"[::-1])  # property, Hertz, strewn
)
_LETTERS = re.compile("[a-z][a-z]{3}")
_WORD = re.compile("[a-z]{2,}")


def noise(text: str) -> bool:
    """Whether most letters are keyboard noise: words along a keyboard row, or with six consonants in a row.

    One word with many consonants is not enough: it may be an abbreviation, or German.

    >>> noise("asdfgh jkl qwertzuiop dfgdfg sdfsdf"), noise("rhythm and blues, 12th century"), noise("asdf is a tool")
    (True, False, False)
    """
    at = len(text) // 2
    pieces = [text[:80].lower(), text[at : at + 80].lower()]
    if not any(_LETTERS.search(piece) and (_in_a_row(piece) or _CONSONANTS.search(piece)) for piece in pieces):
        return False
    sample = text[:2000].lower()
    words = _WORD.findall(sample)
    rows = [word for word in words if _in_a_row(word)]
    others = [word for word in words if _CONSONANTS.search(word) and not _in_a_row(word)]
    if not rows and len(others) < 2:
        return False
    letters = sum(c.isalpha() for c in sample)
    return letters >= 5 and 2 * sum(map(len, rows + others)) > letters


def _in_a_row(text: str) -> bool:
    return any(row in text for row in _ROWS)
