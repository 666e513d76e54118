from __future__ import annotations

from typing import Any

import pytest

from tuneloop.base import language
from tuneloop.planning.cautions import cautions, top_reasons


@pytest.mark.parametrize(
    ("counts", "sentences"),
    [
        ({"rows_in": 100, "train": 80, "dropped": 20}, 0),
        ({"rows_in": 100, "train": 79, "dropped": 21}, 1),
        ({"rows_in": 20, "train": 20, "dropped": 0}, 0),
        ({"rows_in": 19, "train": 19, "dropped": 0}, 1),
        ({"rows_in": 100, "train": 1, "dropped": 99}, 2),
        ({"rows_in": 0, "train": 0}, 1),
        ({}, 0),
    ],
)
def test_when_a_word_is_due(counts: dict[str, int], sentences: int) -> None:
    assert len(cautions(counts, [], "ledger.jsonl")) == sentences


def test_it_says_how_many_why_and_where() -> None:
    steps: list[dict[str, Any]] = [
        {"reason": "no answer", "dropped": 2}, {"reason": "turns merged", "dropped": 0, "changed": 9},
        {"reason": "too long", "dropped": 1200}, {"reason": "home made", "dropped": 5}, {"reason": "repeated", "dropped": 1},
    ]  # fmt: skip
    (said,) = cautions({"rows_in": 2000, "train": 792, "dropped": 1208}, steps, "here/ledger.jsonl")
    assert said == (
        "1,208 of 2,000 rows were dropped (60 %): longer than max_length (1,200 rows); home made (5 rows); "
        "nothing to learn: no answer (2 rows). Each row and its reason: here/ledger.jsonl"
    )


def test_chinese_reasons_are_joined_as_chinese_is(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"longer than max_length": "超过 max_length", "{reason} ({n} rows)": "{reason}（{n} 行）"}
    monkeypatch.setattr(language, "_catalogue", lambda chosen: words)
    language.use("zh")
    assert (
        top_reasons([{"reason": "too long", "dropped": 3}, {"reason": "x", "dropped": 1}])
        == "超过 max_length（3 行）；x（1 行）"
    )
