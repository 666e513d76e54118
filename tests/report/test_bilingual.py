from __future__ import annotations

from dataclasses import dataclass

import pytest

from tuneloop.base import language
from tuneloop.report import bilingual


@dataclass
class Tile:
    label: str
    amount: int


def test_what_is_equal_stands_once_and_what_differs_twice() -> None:
    made = bilingual.in_both(lambda: {"tile": Tile(language.t("better"), 3), "rows": [("loss", language.t("worse"))]})
    assert made["tile"] == {"label": '<span lang="en">better</span><span lang="zh-CN">变好</span>', "amount": 3}
    assert made["rows"][0][0] == "loss"
    assert "变差" in made["rows"][0][1]


def test_texts_of_strangers_are_escaped_in_both_languages() -> None:
    text = str(bilingual.words("wanted: {bounds}", bounds="<b>"))
    assert text.count("&lt;b&gt;") == 2
    assert "<b>" not in text


def test_a_fact_in_both_languages_keeps_its_markup() -> None:
    inner = bilingual.words("better")
    assert str(bilingual.words("wanted: {bounds}", bounds=inner)).count('<span lang="zh-CN">变好</span>') == 2


def test_the_language_is_as_it_was() -> None:
    language.use("zh")
    bilingual.in_both(lambda: language.current())
    assert language.current() == "zh"


@pytest.mark.parametrize(("english", "chinese"), [(["a"], ["a", "b"]), ({"a": 1}, {"b": 1}), (1, 2)])
def test_two_structures_are_no_two_versions_of_one_text(english: object, chinese: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        bilingual.merged(english, chinese)
