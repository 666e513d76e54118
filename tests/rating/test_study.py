"""Who is shown what: shares, overlap, repeats, gold rows, sides; and what survives a crash."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.rating.made import answers, rating, run_with, study_of
from tuneloop.base.errors import RunError
from tuneloop.evaluation.evaluation import Answer
from tuneloop.evaluation.pairs import AnswerPair, pair_up
from tuneloop.rating.rating import Rating
from tuneloop.rating.server import Desk
from tuneloop.rating.study import FILE, JOURNAL, Study

GOLD = [AnswerPair(f"gold {n}", "right", "wrong", right="first") for n in range(3)]


def test_all_raters_see_the_overlap_and_share_the_rest(tmp_path: Path) -> None:
    study = study_of(run_with(tmp_path, answers(50)), raters=4, overlap=0.2, repeats=0)
    plans = [{slot.pair for slot in study.join(name)} for name in "abcd"]
    assert [len(plan) for plan in plans] == [20] * 4  # 10 of all, 10 of the other 40
    common = set.intersection(*plans)
    assert len(common) == 10
    seen = Counter(pair for plan in plans for pair in plan)
    assert len(seen) == 50
    assert sorted(seen.values()) == [1] * 40 + [4] * 10


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 99])
def test_the_overlap_is_never_less_than_was_asked_for(tmp_path: Path, rows: int) -> None:
    study = study_of(run_with(tmp_path, answers(rows)), raters=3, overlap=0.2, repeats=0)
    plans = [{slot.pair for slot in study.join(name)} for name in "abc"]
    assert len(set.intersection(*plans)) >= 0.2 * rows
    assert len(set.union(*plans)) == rows


def test_repeats_come_swapped_and_late_and_gold_rows_to_everybody(tmp_path: Path) -> None:
    study = study_of(run_with(tmp_path, answers(40)), gold=GOLD, repeats=0.2)
    for name in ("Li", "Ana"):
        plan = study.join(name)
        assert Counter(slot.kind for slot in plan) == {"row": 40, "repeat": 8, "gold": 3}
        first = {slot.pair: (n, slot.swapped) for n, slot in enumerate(plan) if slot.kind == "row"}
        for n, slot in enumerate(plan):
            if slot.kind == "repeat":
                before, swapped = first[slot.pair]
                assert n - before >= 5
                assert slot.swapped != swapped
        assert sum(slot.swapped for slot in plan if slot.kind == "row") == 20
    assert study.plans["Li"] != study.plans["Ana"]


def test_the_plan_is_drawn_once_and_written_down(tmp_path: Path) -> None:
    run = run_with(tmp_path, answers(9))
    study = study_of(run, gold=GOLD)
    plan = study.join("Li")
    again = Study.read(study.folder)
    assert again is not None
    assert again.join("Li") == plan
    assert (again.models, again.pairs, again.shares) == (study.models, study.pairs, study.shares)
    content = json.loads((study.folder / FILE).read_text(encoding="utf-8"))
    assert content["raters"]["Li"][0].keys() == {"pair", "kind", "swapped"}


def test_what_is_shown_on_the_left_is_what_the_rating_says(tmp_path: Path) -> None:
    study = study_of(run_with(tmp_path, answers(9)))
    for slot in study.join("Li"):
        blank, (left, right) = study.blank("Li", slot), study.shown(slot)
        assert left.startswith("after" if blank.model_a == "demo-1" else "before")
        assert right.startswith("after" if blank.model_b == "demo-1" else "before")
        chosen = Rating(slot.pair, "Li", blank.model_a, blank.model_b, choice="A").chosen(study.models)
        assert chosen == ("second" if left.startswith("after") else "first")


def test_a_rater_sees_which_answer_was_cut_off(tmp_path: Path) -> None:
    run = run_with(tmp_path, [Answer("q", "before", "after", after_fault="unfinished", context=())])
    study = study_of(run, repeats=0)
    study.join("Li")
    page = Desk(study).shown("Li", 0)
    assert page is not None
    assert [page["cut_a"], page["cut_b"]] == [page[f"answer_{side}"] == "after" for side in "ab"]
    again = Study.read(study.folder)
    assert again is not None
    assert again.pairs == study.pairs
    old = {key: one for key, one in next(iter(study.pairs.values())).as_dict().items() if key != "cut"}
    assert AnswerPair.from_dict(old).cut == (False, False), "of a study from before"


def test_a_line_cut_short_by_a_crash_loses_itself_alone(tmp_path: Path) -> None:
    study = study_of(run_with(tmp_path, answers(4)), repeats=0)
    study.join("Li")
    study.add([rating(study, "Li", n, "second") for n in range(3)])
    path = study.folder / JOURNAL
    path.write_bytes(path.read_bytes()[:-30])
    assert len(study.ratings()) == 2
    assert study.left() == {"Li": 2}
    study.add([rating(study, "Li", 3, "second")])
    assert len(study.ratings()) == 3


def test_of_two_ratings_of_a_slot_the_last_counts(tmp_path: Path) -> None:
    study = study_of(run_with(tmp_path, answers(4)), repeats=0)
    study.join("Li")
    study.add([rating(study, "Li", 0, "first"), rating(study, "Li", 0, "second")])
    assert [one.chosen(study.models) for one in study.ratings()] == ["second"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    study = study_of(run_with(tmp_path, answers(2)))
    with study.alone(), pytest.raises(RunError, match="TL-RUN-RATING-BUSY"), study.alone():
        pass


@pytest.mark.parametrize("text", ["", "[]", "{", '{"models": []}', '{"models": ["a", "b"], "pairs": 1}'])
def test_a_damaged_study_is_a_coded_error(tmp_path: Path, text: str) -> None:
    study = study_of(run_with(tmp_path, answers(2)))
    (study.folder / FILE).write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match="TL-RUN-DAMAGED"):
        Study.read(study.folder)


# Where the pairs come from


def test_stored_answers_of_one_run_and_of_two(tmp_path: Path) -> None:
    run = run_with(tmp_path, [*answers(3), Answer("thoughts", "<think>hm</think>no", "<think>never ends", context=())])
    pairing = pair_up(run, None)
    assert pairing.models == ("demo-1:before", "demo-1")
    assert [(p.first, p.second) for p in pairing.pairs] == [
        *((f"before {n}", f"after {n}") for n in range(3)),
        ("no", ""),
    ]
    other = run_with(tmp_path, answers(5, "other")[1:], "demo-2")
    pairing = pair_up(run, other)
    assert pairing.models == ("demo-1", "demo-2")
    assert [(p.prompt, p.first, p.second) for p in pairing.pairs] == [
        ("question 1", "after 1", "other 1"),
        ("question 2", "after 2", "other 2"),
    ]
    drawn = pair_up(run, None, rows=2, seed=3)
    assert len(drawn.pairs) == 2
    assert drawn == pair_up(run, None, rows=2, seed=3)


def test_both_answer_where_nothing_is_stored(tiny_run: Path) -> None:
    from tuneloop.runs.run import Run

    pairing = pair_up(Run(tiny_run), None, ["Who are you?", "Hello"], max_new_tokens=4)
    assert [pair.prompt for pair in pairing.pairs] == ["Who are you?", "Hello"]
