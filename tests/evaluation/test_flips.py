"""Flips: rows that became worse, worst first, and nothing of an evaluation that has none."""

from __future__ import annotations

from tuneloop.evaluation.evaluation import Answer, Evaluation
from tuneloop.evaluation.flips import Flip, flips
from tuneloop.evaluation.paired import RowScores


def answer(id_: str, before: str, after: str, section: str = "", **more: object) -> Answer:
    return Answer("?", before, after, "right", id=id_, section=section, file="a.csv", line=int(id_), **more)  # type: ignore[arg-type]


def scores(id_: str, before: dict[str, float | None], after: dict[str, float | None], section: str = "") -> RowScores:
    return RowScores(id_, section, before, after)


def test_right_to_wrong_comes_first_then_the_longest_fall() -> None:
    evaluation = Evaluation(
        answers=(answer("1", "x", "y"), answer("2", "x", "y"), answer("3", "right", "no"), answer("4", "x", "better")),
        section_answers=(answer("5", "right", "wrong", "general/knowledge-en"),),
        row_scores=(
            scores("1", {"chrf": 60.0}, {"chrf": 30.0}),
            scores("2", {"chrf": 60.0}, {"chrf": 5.0}),
            scores("3", {"exact_match": 1.0, "chrf": 100.0}, {"exact_match": 0.0, "chrf": 10.0}),
            scores("4", {"chrf": 10.0}, {"chrf": 90.0}),
            scores("5", {"accuracy": 1.0}, {"accuracy": 0.0}, "general/knowledge-en"),
        ),
    )
    fell = flips(evaluation)
    assert [(flip.id, flip.right_to_wrong) for flip in fell] == [("3", True), ("5", True), ("2", False), ("1", False)]
    assert fell[0] == Flip("?", "right", "no", "right", "exact_match", 1.0, 0.0, "", "3", "a.csv", 3)
    assert fell[2].drop == 55.0


def test_a_small_fall_and_a_row_without_a_figure_are_none() -> None:
    rows = (scores("1", {"chrf": 60.0}, {"chrf": 55.0}), scores("2", {"chrf": None}, {"chrf": None}))
    evaluation = Evaluation(answers=(answer("1", "x", "y"), answer("2", "x", "x")), row_scores=rows)
    assert flips(evaluation) == []


def test_an_evaluation_of_an_earlier_version_has_flips_as_well() -> None:
    old = Evaluation(answers=(Answer("?", "the right one", "nothing", "the right one"), Answer("?", "", "", "")))
    assert [(flip.metric, flip.before_score, flip.after_score) for flip in flips(old)] == [("rougeL", 100.0, 0.0)]
    assert flips(Evaluation()) == []
