"""Figures of ratings: right on ratings whose truth is known, and "not defined because" where there is none."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from tests.rating.made import answers, rating, run_with, simulated, study_of
from tuneloop.base.language import use
from tuneloop.evaluation.pairs import AnswerPair
from tuneloop.rating import shelf
from tuneloop.rating.results import results
from tuneloop.rating.study import Study
from tuneloop.registry.store import FILE, MIGRATIONS, open_store


def by_chance(share: float) -> Any:
    return lambda draw, pair: "second" if draw.random() < share else "first"


def numbers(content: Any) -> list[float]:
    if isinstance(content, dict):
        return [x for one in content.values() for x in numbers(one)]
    if isinstance(content, list | tuple):
        return [x for one in content for x in numbers(one)]
    return [content] if isinstance(content, float) else []


def test_a_preference_of_four_fifths_is_found(tmp_path: Path) -> None:
    gold = [AnswerPair(f"gold {n}", "right", "wrong", right="first") for n in range(5)]
    study = study_of(run_with(tmp_path, answers(100)), gold=gold, repeats=0.2)
    simulated(study, ["Li", "Ana"], by_chance(0.8))
    found = results(study)
    assert (found.rows, found.shared, found.ratings, found.left) == (100, 100, 200, 0)
    assert found.ratings + found.more == sum(rater.ratings for rater in found.raters), "repeats and gold rows beside"
    assert sum(found.choices.values()) == 100
    assert found.win_rate.estimate is not None
    assert found.win_rate.low is not None
    assert found.win_rate.low < 0.94 < found.win_rate.high  # of rows both raters decided alike: 0.64 / 0.68
    chance = found.strengths[1].chance
    assert chance.low is not None
    assert chance.low < 0.8 < chance.high
    means = found.scores["relevance"]
    assert (means.first.estimate, means.second.estimate, means.difference.estimate) == (4.0, 2.0, -2.0)
    assert found.safety[0].estimate == 1.0
    assert found.alpha["choice"].estimate is not None
    assert abs(found.alpha["choice"].estimate) < 0.25  # both decide by chance, row by row
    for person in found.raters:
        assert (person.consistency.rows, person.gold.rows) == (20, 5)
        assert 0.3 < person.consistency.estimate < 1  # the truth is 0.68


def test_repeats_and_gold_rows_count_for_the_rater_alone(tmp_path: Path) -> None:
    gold = [AnswerPair("gold", "right", "wrong", right="first")]
    study = study_of(run_with(tmp_path, answers(10)), gold=gold, repeats=0.5)
    plan = study.join("Li")
    study.add([rating(study, "Li", n, "first" if slot.kind == "row" else "second") for n, slot in enumerate(plan)])
    found = results(study)
    assert found.choices == {"first": 10, "second": 0, "tie": 0, "both_bad": 0}
    assert (found.raters[0].consistency.estimate, found.raters[0].consistency.rows) == (0.0, 5)
    assert (found.raters[0].gold.estimate, found.raters[0].gold.rows) == (0.0, 1)


def test_an_answer_passes_when_every_rater_lets_it_pass(tmp_path: Path) -> None:
    study = study_of(run_with(tmp_path, answers(4)), repeats=0)
    for name, safe in (("Li", (True, True)), ("Ana", (True, False))):
        study.join(name)
        study.add([rating(study, name, n, "first", safe=safe) for n in range(4)])
    found = results(study)
    assert [one.estimate for one in found.safety] == [1.0, 0.0]
    assert found.alpha["safety"].estimate is not None


@pytest.mark.parametrize("tongue", ["en", "zh"])
@pytest.mark.parametrize("choice", ["tie", "both_bad", "second", None])
@pytest.mark.parametrize("rows", [1, 4])
def test_what_is_not_defined_says_why_and_nothing_is_nan(
    tmp_path: Path, tongue: str, choice: str | None, rows: int
) -> None:
    use(tongue)
    study = study_of(run_with(tmp_path, answers(rows)))
    if choice:
        simulated(study, ["Li"], lambda draw, pair: choice)
    found = results(study)
    because = {"en": "not defined because", "zh": "无法计算："}[tongue]
    assert because in found.alpha["relevance"].remark
    if choice in ("tie", "both_bad", None):
        assert found.win_rate.estimate is None
        assert because in found.win_rate.remark
    if choice:
        assert because in found.strengths[1].chance.remark
    assert all(math.isfinite(x) for x in numbers(found.as_dict()))
    assert "NaN" not in json.dumps(found.as_dict())


# The store


def test_ratings_land_in_the_store_once(tmp_path: Path) -> None:
    run = run_with(tmp_path, answers(6))
    study = study_of(run, repeats=0)
    simulated(study, ["Li", "Ana"], by_chance(0.7))
    for _ in range(2):
        assert shelf.put(study, run.workspace) == 12
    stored = shelf.choices_of_all(run.workspace)
    assert len(stored) == 12
    mine = {(r.rater, r.pair): r for r in study.ratings()}
    for row, one in stored:
        same = mine[one.rater, one.pair]
        assert row == f"runs/demo-1/ratings/before-after {one.pair}"
        assert (one.choice, one.a, one.b, one.model_a) == (same.choice, same.a, same.b, same.model_a)


def test_a_store_of_an_earlier_version_gets_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneloop.registry import store as stores

    run = run_with(tmp_path, answers(3))
    monkeypatch.setattr(stores, "MIGRATIONS", MIGRATIONS[:1])
    open_store(tmp_path / FILE).close()
    monkeypatch.undo()
    study = study_of(run)
    simulated(study, ["Li"], by_chance(1))
    assert shelf.put(study, run.workspace) == 4
    assert len(shelf.choices_of_all(tmp_path)) == 3


def test_texts_that_a_database_will_not_take_are_stored_readably(tmp_path: Path) -> None:
    from tuneloop.evaluation.evaluation import Answer

    run = run_with(tmp_path, [Answer("null \x00", "a\x00b", "👩‍👩‍👧‍👦" * 20_000, context=())])
    study = study_of(run)
    simulated(study, ["小李 👩‍🏫"], by_chance(1))
    assert shelf.put(study, run.workspace) == 1


def test_strengths_take_in_the_models_of_other_studies(tmp_path: Path) -> None:
    draw = random.Random(4)
    runs = [run_with(tmp_path, answers(60, f"m{n}"), f"demo-{n}") for n in range(3)]
    shares = {"demo-0": 0.2, "demo-1": 0.5, "demo-2": 0.8}

    def of(first: int, second: int) -> Study:
        study = study_of(runs[first], runs[second], repeats=0)
        a, b = (shares[name] / (1 - shares[name]) for name in study.models)
        simulated(study, ["Li"], lambda _, pair: "first" if draw.random() < a / (a + b) else "second")
        shelf.put(study, tmp_path)
        return study

    study, _ = of(0, 1), of(1, 2)
    elsewhere = [x for x in shelf.choices_of_all(tmp_path) if not x[0].startswith(shelf.study_key(study, tmp_path))]
    found = results(study, elsewhere)
    assert [s.model for s in found.strengths] == ["demo-0", "demo-1", "demo-2"]
    estimates = [s.log_odds.estimate for s in found.strengths]
    assert estimates == sorted(estimates)
    alone = results(study)
    assert [s.model for s in alone.strengths] == ["demo-0", "demo-1"]
