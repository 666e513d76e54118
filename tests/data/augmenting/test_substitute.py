"""Words that give way to others, and all that must stay as it is."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tuneloop.base.errors import DataError
from tuneloop.data.augmenting.substitute import groups, substituted, words


def only(text: str, most: int = 9, seed: int = 0) -> str | None:
    table = {"begin": ("start",), "error": ("mistake",), "big": ("large",), "如何": ("怎样",), "开心": ("高兴",)}
    changed = substituted(text, table, random.Random(seed), most)
    return changed and changed.text


@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("How do I begin?", "How do I start?"),
        ("Begin now.", "Start now."),
        ("This is an error. OK?", "This is a mistake. OK?"),
        ("An error!", "A mistake!"),
        ("我该如何做才能开心？", "我该怎样做才能高兴？"),
        ("Is it big? Or not.", "Is it large? Or not."),
        ("where to begin.", "where to start."),
    ],
)
def test_words_give_way(text: str, new: str) -> None:
    assert only(text) == new


@pytest.mark.parametrize(
    "text",
    [
        "Nothing to see here.", "Run `begin` twice", "```\nbegin\n```", "See https://a.example/begin", "He said “begin”",
        'He said "begin" twice', "the Big Ben", "BIG news", "begin-work", "re-begin", "begin's", "big2", "2big", "begin_x",
        "begin.py is here", "Give a synonym of big", "Translate: how do I begin?", "把如何翻译成英文", "“如何”是什么意思",
        "《如何开心》好看吗？", "beginning bigger errors", "[error] at line 3", "<begin>", "$big$", "",
    ],
)  # fmt: skip
def test_words_stay(text: str) -> None:
    assert only(text) is None


def test_one_sentence_changes_and_at_most_two_words() -> None:
    text = "Big big big big big. How do I begin? An error."
    table = {"begin": ("start",), "error": ("mistake",), "big": ("large",)}
    for seed in range(20):
        changed = substituted(text, table, random.Random(seed))
        assert changed is not None
        assert changed.text == text.replace(changed.before, changed.after, 1)
        old, new = words(changed.before), words(changed.after)
        assert 1 <= sum(a != b for a, b in zip(old, new, strict=True)) - (changed.after == "A mistake.") <= 2


def test_a_word_that_the_cutter_parts_is_found_whole() -> None:
    changed = substituted("我的小石头机器人很慢", {"小石头机器人": ("它",)}, random.Random(0))
    assert changed is not None
    assert changed.text == "我的它很慢"


def test_the_packaged_table_goes_the_ways_it_says() -> None:
    table = groups()
    assert table["physician"] == ("doctor",)
    assert "doctor" not in table
    assert set(table["如果"]) == {"假如", "要是"}
    assert table["但是"] == ("可是", "不过")
    assert not [word for word, others in table.items() if word in others]
    assert len(table) > 250


def test_a_table_of_your_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\ufeff# mine\nBike cycle\nlamp > torch light\n", encoding="utf-8")
    assert groups(str(file)) == {"bike": ("cycle",), "cycle": ("bike",), "lamp": ("torch", "light")}
    file.write_text("alone\n", encoding="utf-8")
    groups.cache_clear()
    for wrong in (file, tmp_path / "none.txt"):
        with pytest.raises(DataError) as caught:
            groups(str(wrong))
        assert caught.value.code == "TL-DATA-SYNONYMS"
