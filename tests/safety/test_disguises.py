"""Listed words in disguise, and ordinary texts that happen to have their letters."""

from __future__ import annotations

import random

import pytest

from tests.safety.disguises import all_disguises
from tuneloop.safety.guard import TextGuard
from tuneloop.safety.lexicon import shipped

GUARD = TextGuard.load()
WORDS = sorted({word.text for word in shipped() if word.category})
FRAMES = ("{}", "you know {} now", "我觉得{}这样")
# What cannot be told from ordinary numbers: digits in place of all letters or between the digits of a word. What is
# another character and not another form of it: 連 for 聯. A repeated letter with which the next word begins as well.
MISSED = {"Japanese forms": 0.002, "letters repeated": 0.004, "digits between": 0.002, "digits for letters": 0.002}


@pytest.mark.parametrize(("name", "disguise"), sorted(all_disguises().items()), ids=sorted(all_disguises()))
def test_each_listed_word_is_found(name: str, disguise: object) -> None:
    chance = random.Random(7)
    missed = []
    for k, word in enumerate(WORDS):
        text = FRAMES[k % 3].format(disguise(word, chance))  # type: ignore[operator]
        spans = GUARD.words(text)
        if not spans:
            missed.append(text)
        assert all(text[s.start : s.end] == s.text for s in spans)
    assert len(missed) <= MISSED.get(name, 0.0) * len(WORDS), missed[:5]


@pytest.mark.parametrize(
    "text",
    [
        "路口，交通拥堵", "出口 交易额", "人口。交流", "窗口\n交材料", "他张开口，交代了一切", "牛肉 棒极了", "情况很复杂 种类繁多",
        "wet. Back to work", "the 80's hit", "as sure as hell", "class, hit the books", "Scunthorpe", "a push it song", "s. Hit me",
        "fun\nck", "He'll go", "assess hits", "10 0 15 5", "ab 3 cu 4 nt", "$5.11 + 7%", "bit chart", "shuttlecock",
        "小说、成人用品", "一二三四五六七", "x1y2z3", "2 girls, 1 dog", "𝒎𝒂𝒕𝒉", "1 2 3 4 5 6 7 8 9 0",
    ],
)  # fmt: skip
def test_ordinary_texts_are_left_alone(text: str) -> None:
    assert [span.text for span in GUARD.words(text)] == []
    assert GUARD.filter(text).text == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("oh f.u.c.k!", "oh ***!"),
        ("f**k off", "*** off"),
        ("fuuuuuck", "***"),
        ("a \U0001f155\U0001f164\U0001f152\U0001f15a b", "a *** b"),
        ("ʇıɥs shit", "ʇıɥs ***"),
        ("𝐟𝐮𝐜𝐤", "***"),
        ("\\u0066uck &#102;uck", "*** ***"),
        ("f\nu\nc\nk", "***"),
        ("王👿八👿蛋", "***"),
        ("fück", "***"),
        ("他 妈 的", "***"),
        ("mail li@example.com or 13812345678", "mail [EMAIL] or [MOBILE]"),
    ],
)
def test_masks(text: str, masked: str) -> None:
    assert GUARD.filter(text).text == masked
