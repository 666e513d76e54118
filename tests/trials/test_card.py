"""The data card shows what happened: no bar for a step that did nothing, every dropped row somewhere in the lengths."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tests.made import build, jsonl, recipe
from tests.trials.test_split import Maker
from tuneloop.base.records import Message, Record
from tuneloop.data.card import page as card
from tuneloop.data.card.profile import of
from tuneloop.data.tokens.preflight import _label
from tuneloop.data.tokens.samples import Sample, Sequences


def rows(count: int, size: int, maker: Maker) -> list[dict[str, str]]:
    return [{"question": maker.text(20), "answer": maker.text(size)} for _ in range(count)]


def flows(page: str) -> list[str]:
    """The bars of the table of steps."""
    return re.findall(r'<td class="flow">(.*?)</td>', page)


def test_steps_without_an_effect_have_no_bar(tmp_path: Path) -> None:
    maker = Maker(1)
    made = build(recipe(jsonl(tmp_path / "f.jsonl", rows(30, 40, maker))), tmp_path)
    page = card.card(of(made))
    assert not flows(page)
    assert "found nothing to do: reading" in page
    own = rows(30, 40, maker)
    again = build(recipe(jsonl(tmp_path / "g.jsonl", [*own, *own[:5]])), tmp_path)
    page = card.card(of(again))
    assert len([bar for bar in flows(page) if bar]) == 1
    assert "repetitions" in page.split("found nothing to do")[0]


def test_every_dropped_row_is_in_the_lengths_or_told_beside_them(tmp_path: Path) -> None:
    maker = Maker(2)
    own = [*rows(30, 40, maker), *rows(7, 400, maker), *rows(5, 5, maker)]
    made = build(recipe(jsonl(tmp_path / "f.jsonl", [*own, *own[:4]]), max_length=200, tokens=[30, 200]), tmp_path)
    data = of(made)
    assert sum(n for _, n in data["lengths"]["too_long"]) == 12
    assert data["counts"]["dropped"] == 16
    page = card.card(data)
    assert "dropped for their length: 12" in page
    assert "Not shown: 4 rows" in page


def test_the_sample_of_a_prompt_shows_the_word_that_is_trained() -> None:
    record = Record((Message("user", "Fine."),), kind="label", label="positive")
    samples = Sequences.of([Sample(np.array([1], np.int32), np.array([False]), record.id, True)])
    assert _label(samples, 0, [record], {"positive": ["good", "great"]}) == [(" → good / great", True)]
    assert _label(samples, 0, [record], {}) == [(" → positive", True)]
