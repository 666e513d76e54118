"""Faults of a policy file are told with their key, and in the chosen language."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneloop.base.errors import ServeError
from tuneloop.base.language import speaking
from tuneloop.safety.policy import read_policy


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("lexicon: shop\n", "lexicon: 没有这个键"),
        ("kinds: [mobil]\n", "kinds.0: 要求：以下之一：id_card、mobile、"),
        ("words: {rivals: Acme}\n", "words.rivals: 要求：列表"),
    ],
)
def test_faults_are_in_the_chosen_language(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "guard.yaml"
    path.write_text(content, encoding="utf-8")
    with speaking("zh"), pytest.raises(ServeError) as caught:
        read_policy(path)
    assert caught.value.code == "TL-SERVE-POLICY"
    assert words in str(caught.value)
    assert "Input should" not in str(caught.value)
