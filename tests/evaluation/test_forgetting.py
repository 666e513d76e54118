"""What was forgotten: per section, with a margin, and nothing from noise or too few rows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tuneloop.evaluation.forgetting import LEAST, MARGIN, Forgetting, forgetting, sentence
from tuneloop.evaluation.paired import RowScores

ENGLISH, CHINESE = "general/knowledge-en", "general/knowledge-zh"


def rows(**moved: float) -> list[RowScores]:
    """Sixteen rows of two sections; `en` and `zh` are what their losses rose by, with some spread."""
    noise = np.random.default_rng(0).normal(0, 0.05, 16)
    return [
        RowScores(f"{name}-{k}", name, {"loss": 2.0 + k / 10}, {"loss": 2.0 + k / 10 + moved[tongue] + float(noise[k])})
        for name, tongue in ((ENGLISH, "en"), (CHINESE, "zh"))
        for k in range(16)
        if tongue in moved
    ]


def of(*found: RowScores) -> Forgetting:
    judged = forgetting(found)
    assert judged is not None
    return judged


def test_what_one_language_forgets_the_other_does_not_make_good() -> None:
    judged = of(*rows(en=0.5, zh=-2.0))
    assert (judged.verdict, judged.forgot) == ("forgot", (ENGLISH,))
    assert judged.facts is not None
    assert judged.facts.high < 0  # all together it has gained
    assert "English" in sentence(judged)
    assert "+0.5" in sentence(judged)


@pytest.mark.parametrize(
    ("moved", "verdict"),
    [(MARGIN + 0.1, "forgot"), (MARGIN / 2, "within margin"), (0.0, "not separable"), (-0.4, "improved")],
)
def test_a_loss_must_rise_by_more_than_the_margin(moved: float, verdict: str) -> None:
    assert of(*rows(en=moved, zh=moved)).verdict == verdict


def test_rounding_is_no_learning_however_narrow_its_interval() -> None:
    same = [RowScores(str(k), ENGLISH, {"loss": 2.0}, {"loss": 2.0 + 1e-6 + k * 1e-9}) for k in range(16)]
    assert of(*same).verdict == "not separable"
    assert of(*(RowScores(str(k), ENGLISH, {"loss": 2.0}, {"loss": 2.0}) for k in range(16))).verdict == "not separable"


def test_too_few_rows_and_rows_that_were_not_measured() -> None:
    few = rows(en=1.0)[: LEAST - 1]
    assert of(*few).verdict == "not defined"
    assert "not known" in sentence(of(*few))
    lost = [RowScores(str(k), ENGLISH, {"loss": None}, {"loss": None}) for k in range(16)]
    assert of(*lost).verdict == "not defined"
    assert forgetting([RowScores("a", "", {"loss": 1.0}, {"loss": 2.0})]) is None


def test_it_comes_back_from_json() -> None:
    for judged in (of(*rows(en=0.5, zh=0.0)), of(*rows(en=1.0)[:2])):
        written = json.loads(json.dumps(judged.as_dict(), allow_nan=False))
        assert Forgetting.from_dict(written) == judged


def test_the_manner_of_instructions_and_refusals_judges_nothing() -> None:
    moved = [RowScores(str(k), "general/instructions-en", {"loss": 1.0 + k}, {"loss": 4.0 + k}) for k in range(10)]
    judged = of(*rows(en=0.0), *moved)
    assert judged.verdict == "not separable"
    assert judged.sections["general/instructions-en"].low == 3.0
    assert of(*moved).verdict == "not defined"
