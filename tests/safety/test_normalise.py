"""Folding for matching, and the way back to the original's offsets."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.safety.normalise import fold


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("", ""),
        ("Plain ASCII", "plain ascii"),
        ("ＡＢｃ１２３＠－．：", "abc123@-.:"),
        ("全角　空格，标点！", "全角 空格,标点!"),
        ("１３８\u200b１２３４\u200d５６７８\ufeff", "13812345678"),
        ("soft\u00adhyphen\u2060", "softhyphen"),
        ("\u202e反\u202c", "反"),
        ("a–b—c−d‑e", "a-b-c-d-e"),
        ("Straße İ", "strasse i\u0307"),
        ("ﬁne ｶﾞ ㎏", "fine ガ kg"),
        ("e\u0301 É", "é é"),
        ("\u1112\u1161\u11ab", "한"),
        ("𝟏𝟑𝟖 ٣٤", "138 34"),
        ("①138 x² ½ ⒊", "①138 x² ½ ⒊"),
        ("1\ufe0f\u20e3", "1\u20e3"),
        ("\udc80１", "\udc801"),
    ],
)
def test_folds(text: str, folded: str) -> None:
    assert fold(text).text == folded


def test_capitals_stay_if_wanted() -> None:
    assert fold("ＡｂC é", case=False).text == "AbC é"
    assert fold("AbC", case=False).text == "AbC"


@pytest.mark.parametrize(
    ("text", "piece", "original"),
    [
        ("电话１３８\u200b００１３", "1380013", "１３８\u200b００１３"),
        ("Ａ…bＣ", "...", "…"),
        ("Ａ…bＣ", "bc", "bＣ"),
        ("x e\u0301\u0323 y", "y", "y"),
        ("\u200bＡ", "a", "Ａ"),
        ("same length，ok", "ok", "ok"),
    ],
)
def test_a_find_is_shown_in_the_original(text: str, piece: str, original: str) -> None:
    folded = fold(text)
    at = folded.text.index(piece)
    start, end = folded.original(at, at + len(piece))
    assert text[start:end] == original


@given(
    st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("aA１\u200b\u0301\u0323…ﬁ각\u11abß①"), min_size=1)
)
def test_every_piece_has_its_place(text: str) -> None:
    folded = fold(text)
    last = (0, 0)
    for n in range(len(folded.text)):
        start, end = folded.original(n, n + 1)
        assert 0 <= start < end <= len(text)
        assert start >= last[0]
        assert end >= last[1]
        # What stands there folds to what was found there.
        assert folded.text[n] in fold(text[start:end]).text
        last = (start, end)
    assert fold(folded.text).text == fold(fold(folded.text).text).text


@pytest.mark.timeout(60)
def test_long_runs_of_marks_come_to_an_end() -> None:
    text = "a" + "\u0301\u0323" * 150_000  # unicodedata.normalize sorts such a run in quadratic time
    assert fold(text).text
    assert unicodedata.normalize("NFC", fold("e\u0301").text) == "é"
