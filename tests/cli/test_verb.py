from __future__ import annotations

import pytest

from tuneloop.base import language
from tuneloop.base.errors import RecipeError
from tuneloop.cli.verb import speak, spoken


@pytest.mark.parametrize(
    ("words", "rest", "lang"),
    [
        ([], [], ""),
        (["doctor"], ["doctor"], ""),
        (["--lang", "zh", "doctor"], ["doctor"], "zh"),
        (["doctor", "--lang=zh", "--json"], ["doctor", "--json"], "zh"),
        (["doctor", "--lang"], ["doctor"], "?"),
        (["doctor", "--lang="], ["doctor"], "?"),
        (["--lang", "en", "doctor", "--lang", "zh"], ["doctor"], "zh"),
        (["run", "--", "--lang", "zh"], ["run", "--", "--lang", "zh"], ""),
        (["run", "--language", "zh"], ["run", "--language", "zh"], ""),
    ],
)
def test_the_language_is_taken_out_of_the_line(words: list[str], rest: list[str], lang: str) -> None:
    assert spoken(words) == (rest, lang)


def test_a_word_that_is_no_language_is_refused() -> None:
    speak("ZH-cn")
    assert language.current() == "zh"
    with pytest.raises(RecipeError, match="TL-RECIPE-LANGUAGE"):
        speak("?")
    assert language.current() == "zh"
