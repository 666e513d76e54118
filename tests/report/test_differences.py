from __future__ import annotations

import random
import re

import pytest
from markupsafe import Markup

from tuneloop.report.differences import LONGEST, WORDS, bounded, marked_words

PAIRS = [
    ("", ""), ("", "a"), ("same words", "same words"), ("I am İstanbul's <b>model</b>", "I am istanbul's <i>cat</i>"),
    ("今天天气很好，我们去公园。", "今天天气不好，我们不去公园！"), ("👋🏽 hi", "👋🏽 hello"), ("مرحبا بكم", "مرحبا بك"),
    ("cafe\u0301 noir", "café au lait"), ("\x00\ud83d half", "half"), ("a b " * 30_000, "b a " * 30_000),
]  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_marks_change_no_text(pair: tuple[str, str]) -> None:
    """Without its marks each side is the escaped text it was, composed."""
    import unicodedata

    for text, shown in zip(pair, marked_words(*pair), strict=True):
        bare = re.sub(r"</?(ins|del)>", "", str(shown))
        assert bare == str(Markup.escape(unicodedata.normalize("NFC", text)))


def test_only_words_that_differ_are_marked() -> None:
    before, after = marked_words("The cat sat on the mat.", "The dog sat on the red mat.")
    assert str(before) == "The <del>cat</del> sat on the mat."
    assert str(after) == "The <ins>dog</ins> sat on the <ins>red</ins> mat."


def test_chinese_is_compared_by_words_and_case_does_not_count() -> None:
    assert str(marked_words("我来到北京清华大学", "我来到上海清华大学")[1]) == "我来到<ins>上海</ins>清华大学"
    assert "<ins>" not in str(marked_words("Hello World", "hello world")[1])


def test_answers_with_nothing_in_common_are_not_marked_all_over() -> None:
    assert "<" not in "".join(map(str, marked_words("one two three", "four five six")))


def test_long_answers_are_bounded() -> None:
    assert bounded("x" * (LONGEST + 7)) == ("x" * LONGEST, 7)
    draw = random.Random(0)
    long = [" ".join(draw.choice("abcdefgh") for _ in range(50_000)) for _ in range(2)]
    marked = str(marked_words(*long)[0])
    assert marked.rindex("</del>") < 8 * WORDS + 20 * WORDS, "what comes later is not compared"
