"""Shingles against a second definition of them, written in plain Python, character by character."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.data.dedupe import shingles as module
from tuneloop.data.dedupe.shingles import chunks, jaccard, shingled, shingles

UNSPACED = (
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "HANGUL",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
    "YI ",
    "BOPOMOFO",
    "COMBINING KATAKANA",
)


def plain_units(text: str) -> list[str]:
    """The units of a text by the names of its characters."""
    units: list[str] = []
    in_word = False
    for char in text:
        compatible = unicodedata.normalize("NFKC", char)
        char = compatible if len(compatible) == 1 else char
        char = char.casefold() if len(char.casefold()) == 1 else char
        category = unicodedata.category(char)
        name = unicodedata.name(char, "")
        if category[0] == "Z" or category in ("Cc", "Cf") or name.startswith("VARIATION SELECTOR-"):
            in_word = False
        elif category[0] in "LMN" and not name.startswith(UNSPACED) and "IDEOGRAPH" not in name:
            units = [*units[:-1], units[-1] + char] if in_word else [*units, char]
            in_word = True
        else:
            units.append(char)
            in_word = False
    return units


def plain(text: str) -> set[tuple[str, str]]:
    units = ["", *plain_units(text), ""]
    return set(pairwise(units))


def plain_jaccard(one: str, other: str) -> float:
    a, b = plain(one), plain(other)
    return len(a & b) / len(a | b)


TEXT = st.text(
    st.sampled_from("abAB12 ..,，。！\n\t\u3000今天气很好的我ーカｶ가나é́ßΣçﬁ０Ａ😀\u200b\u200d\ufeffไทย𠀀𠀁"),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=6))
def test_a_batch_has_the_plain_definitions_sets(texts: list[str]) -> None:
    values, bounds = shingled(texts)
    assert len(bounds) == len(texts) + 1
    meant: dict[int, set[tuple[str, str]]] = {}
    for n, text in enumerate(texts):
        mine = values[bounds[n] : bounds[n + 1]]
        assert len(mine) == len(plain_units(text)) + 1
        assert len(set(mine.tolist())) == len(plain(text))
        assert (np.unique(mine) == shingles(text)).all()  # whatever stands beside it in the batch
        for value, pair in zip(mine.tolist(), pairwise(["", *plain_units(text), ""]), strict=True):
            meant.setdefault(value, set()).add(pair)
    assert all(len(pairs) == 1 for pairs in meant.values())
    assert jaccard(texts[0], texts[-1]) == plain_jaccard(texts[0], texts[-1])


def test_every_character_of_the_table_is_the_unit_that_its_name_says() -> None:
    """Letters of most alphabets make words; the listed scripts, marks and symbols stand alone; blanks are nothing."""
    for low, high in (
        (0x20, 0x250),
        (0x370, 0x600),
        (0x3041, 0x3100),
        (0x4E00, 0x4E80),
        (0xAC00, 0xAC80),
        (0xFF01, 0xFF66),
    ):
        for code in range(low, high):
            text = f"a{chr(code)}b"
            assert len(shingled([text])[0]) == len(plain_units(text)) + 1, hex(code)


@pytest.mark.parametrize(("changed", "expected"), [(1, 39 / 43), (2, 37 / 45), (3, 35 / 47)])
def test_forty_characters_with_some_replaced(changed: int, expected: float) -> None:
    text = "".join(chr(0x4E00 + 7 * n) for n in range(40))
    other = list(text)
    for n in range(changed):
        other[5 + 10 * n] = "龘"
    assert jaccard(text, "".join(other)) == pytest.approx(expected)


def test_words_in_order() -> None:
    assert jaccard("the cat sat on the mat", "The  cat\nsat on the mat") == 1
    assert jaccard("the cat sat", "cat the sat") < 0.4
    assert jaccard("number 1211", "number 1121") < 1  # the same characters in another order
    assert jaccard("3 + 5", "3 - 5") < 0.5
    assert jaccard("", "") == 1
    assert jaccard("", "好") == 0


def test_what_utf8_cannot_hold_and_what_lies_above_the_table() -> None:
    assert jaccard("好\ud800", "好\ud800") == 1
    assert jaccard("𠀀𠀁𪜀好", "𠀀𠀁𪜀好") == 1
    assert jaccard("𠀀𠀁好", "𠀀𠀂好") < 0.5


def test_chunks_cover_all_texts_once_and_a_long_one_alone() -> None:
    texts = ["a" * 10] * 20_000 + ["b" * 200_000] + [""] * 100_000
    runs = list(chunks(texts))
    assert [begin for begin, _ in runs[1:]] == [end for _, end in runs[:-1]]
    assert (runs[0][0], runs[-1][1]) == (0, len(texts))
    assert (20_000, 20_001) in runs
    assert all(sum(len(t) + 1 for t in texts[b:e]) <= module.CHUNK for b, e in runs if e - b > 1)
    assert list(chunks([])) == []


def test_a_text_longer_than_a_chunk() -> None:
    words = [f"w{n}" for n in range(60_000)]
    values, _ = shingled([" ".join(words)])
    assert len(values) == len(set(values.tolist())) == 60_001
    assert jaccard(" ".join(words), " ".join([*words[:30_000], "x", *words[30_001:]])) == pytest.approx(59_999 / 60_003)
