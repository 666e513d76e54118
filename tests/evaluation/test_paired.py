"""Two models on the same rows: told apart only by evidence, and never NaN."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.evaluations import evaluation, scores
from tuneloop.base.records import Message, Record, Reply
from tuneloop.cli import tables
from tuneloop.evaluation import compare, gate
from tuneloop.evaluation.by_row import answer_rows, compare_held, joined, section_texts
from tuneloop.evaluation.corpus import SectionTexts
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.metrics import METRICS
from tuneloop.evaluation.paired import Paired, RowScores, compare_rows
from tuneloop.evaluation.run_figures import paired_runs
from tuneloop.report import gains
from tuneloop.report.verdict import verdict

NOISE = 0.02
"""Standard deviation of a row's loss between two seeds of the same training, roughly."""


def losses(rows: int, gain: float, seed: int = 0, **more: float) -> list[RowScores]:
    """Held-out rows whose loss falls by `gain`, give or take."""
    rng = np.random.default_rng(seed)
    before = rng.normal(2, 0.5, rows)
    after = before - gain + rng.normal(0, NOISE, rows)
    weights = rng.integers(5, 90, rows)
    return [RowScores(str(k), "", {"loss": b, "perplexity": math.exp(b)}, {"loss": a, "perplexity": math.exp(a)}, float(w))
            for k, (b, a, w) in enumerate(zip(before, after, weights, strict=True))]  # fmt: skip


def only(pairs: list[Paired], metric: str, section: str = "") -> Paired:
    (pair,) = [p for p in pairs if (p.metric, p.section) == (metric, section)]
    return pair


def test_a_gain_is_better_and_a_loss_is_worse_and_perplexity_agrees() -> None:
    for gain, word in ((0.1, "better"), (-0.1, "worse"), (0.0, "not separable")):
        pairs = compare_rows(losses(60, gain))
        assert [p.metric for p in pairs] == ["loss", "perplexity"]
        assert {p.separation for p in pairs} == {word}
        pair = only(pairs, "loss")
        assert pair.difference.estimate == pytest.approx(-gain, abs=0.02)
        assert pair.before.rows == 60


def test_the_loss_of_all_rows_weighs_tokens() -> None:
    pair = only(
        compare_rows(
            [
                RowScores("a", "", {"loss": 1.0}, {"loss": 1.0}, 30.0),
                RowScores("b", "", {"loss": 4.0}, {"loss": 2.0}, 10.0),
            ]
        ),
        "loss",
    )
    assert (pair.before.estimate, pair.after.estimate) == (1.75, 1.25)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_too_few_rows_are_never_told_apart(rows: int) -> None:
    pairs = compare_rows(losses(rows, 1.0))
    assert {p.separation for p in pairs} == {"not separable"}


def test_a_run_that_learned_nothing_is_not_separable() -> None:
    """Before is after, or after is before with the noise of another seed: in few of many may chance look like a gain."""
    same = compare_rows(losses(40, 0.0))
    still = compare_rows([RowScores(r.id, "", r.before, r.before, r.weight) for r in losses(40, 0.0)])
    assert {p.separation for p in (*same, *still)} == {"not separable"}
    assert only(still, "loss").difference.estimate == 0
    seeds = [only(compare_rows(losses(40, 0.0, seed)), "loss").separation for seed in range(100, 140)]
    assert seeds.count("not separable") >= 36


def test_a_change_that_is_sure_and_nothing_is_not_separable() -> None:
    """A training at a learning rate of 1e-7 lowered the loss of every row, by 2e-5: real, sure, and nothing."""
    tiny, noise, small = (
        compare_rows([RowScores(r.id, "", r.before, {k: v - share * v for k, v in r.before.items() if v}, r.weight)
                      for r in losses(100, 0.0)])
        for share in (1e-5, 0.004, 0.006)
    )  # fmt: skip
    for pairs, word, note in (
        (tiny, "not separable", "too small"),
        (noise, "not separable", "too small"),
        (small, "better", ""),
    ):
        assert {p.separation for p in pairs} == {word}
        assert only(pairs, "loss").difference.high < 0  # type: ignore[operator]
        assert only(pairs, "loss").difference.note == note


def test_ten_healthy_runs_are_all_better() -> None:
    """Each gains as much as a short training does; none of them is called worse anywhere."""
    for seed in range(10):
        one = measured(losses(80, 0.15, seed))
        assert {c.word for c in compare.changes(one) if c.separation} == {"better"}
        assert verdict(one).tone == "good"


def test_so_few_rows_show_no_difference_and_that_is_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    one = measured(losses(5, 1.0))
    pair = only(list(one.paired), "loss")
    assert pair.difference.high < 0, "the interval leaves out 0"  # type: ignore[operator]
    assert (pair.separation, pair.word, pair.p) == ("not separable", "too few rows", 0.0625)
    assert only(list(measured(losses(6, 1.0)).paired), "loss").separation == "better", "six are enough"
    sentence = "With 5 rows no difference can be told from chance, however large it is: that takes 6 rows at least."
    assert sentence in verdict(one).text
    tables.changes(one)
    shown = capsys.readouterr().out
    assert sentence in shown
    assert "0.062" in shown
    assert "Few rows (5)" not in shown
    row = next(r for r in gains.numbers(one) if r["label"] == "held-out loss")
    assert (row["p"], row["word"]) == ("p = 0.062", "too few rows")


def test_the_rows_under_a_table_are_those_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    held = [record(k) for k in range(10)]
    files = {"a": held[:4], "b": held[4:]}
    rows = [replace(row, id=one.id) for row, one in zip(losses(10, 0.3), held, strict=True)]
    sides = [scores(2.0), scores(1.7)]
    one = evaluation(*sides, files={"a": (2.0, 1.7), "b": (2.0, 1.7)}, paired=compare_held(rows, {}, files),
                     row_scores=tuple(rows))  # fmt: skip
    tables.changes(one)
    assert "Few rows (4–10)" in capsys.readouterr().out


def measured(rows: list[RowScores], texts: dict[str, SectionTexts] | None = None) -> Evaluation:
    weights = sum(r.weight for r in rows)
    before, after = (sum(getattr(r, side)["loss"] * r.weight for r in rows) / weights for side in ("before", "after"))
    return evaluation(scores(before, perplexity=math.exp(before)), scores(after, perplexity=math.exp(after)),
                      paired=compare_held(rows, texts or {}, {}), row_scores=tuple(rows))  # fmt: skip


def test_the_table_and_the_verdict_say_not_separable() -> None:
    rows = [RowScores(r.id, "", r.before, {"loss": r.before["loss"] + d}, r.weight)  # type: ignore[operator]
            for r, d in zip(losses(12, 0.0), np.resize([0.3, -0.25, 0.2, -0.1], 12), strict=True)]  # fmt: skip
    one = measured(rows)
    change = next(c for c in compare.changes(one) if c.metric == "loss")
    assert (change.better, change.separation, change.word) == (None, "not separable", "not separable")
    assert " … " in change.interval
    assert change.change != 0
    text = verdict(one).text
    assert "On 12 rows that is not separable from chance." in text
    assert "fell" not in text
    assert "rose" not in text
    assert verdict(one).tone == "plain"
    old = evaluation(one.before, one.after)
    assert "fell" in verdict(old).text or "rose" in verdict(old).text, "an old evaluation keeps its words"


def test_a_files_loss_is_worse_only_by_its_own_rows() -> None:
    rows = losses(60, 0.2)
    files = {"a": [record(k) for k in range(30)], "b": [record(k) for k in range(30, 60)]}
    for k, row in enumerate(rows):
        own = record(k).id
        after = row.after["loss"] + (0.4 if k >= 30 else 0.0)  # type: ignore[operator]
        rows[k] = RowScores(own, "", row.before, {"loss": after}, row.weight)
    pairs = list(compare_held(rows, {}, files))
    assert [only(pairs, "loss", f"source/{name}").separation for name in "ab"] == ["better", "worse"]
    assert [only(pairs, "loss", f"source/{name}").before.rows for name in "ab"] == [30, 30]
    assert not any(p.section for p in compare_held(rows, {}, {"a": files["a"]})), "one file is all there is"


def record(number: int, answer: str = "a", **more: Any) -> Record:
    return Record((Message("user", f"question {number}"), Message("assistant", answer)), "a", number, **more)


def test_proportions_need_newcombe_and_mcnemar() -> None:
    def rows(won: int, lost: int, n: int = 40) -> list[RowScores]:
        sides = [(0.0, 1.0)] * won + [(1.0, 0.0)] * lost + [(1.0, 1.0)] * (n - won - lost)
        return [RowScores(str(k), "", {"accuracy": b}, {"accuracy": a}) for k, (b, a) in enumerate(sides)]

    clear, close = (only(compare_rows(rows(*change)), "accuracy") for change in ((12, 1), (5, 0)))
    assert (clear.separation, clear.difference.method, clear.before.method) == ("better", "newcombe", "wilson")
    assert close.difference.low > 0, "the interval alone leaves out 0"  # type: ignore[operator]
    assert (close.separation, close.p) == ("not separable", 0.0625)
    percent = only(
        compare_rows(
            [RowScores(str(k), "", {"exact_match": 0.0}, {"exact_match": 100.0 * (k < 9)}) for k in range(10)]
        ),
        "exact_match",
    )
    assert (percent.after.estimate, percent.difference.estimate, percent.separation) == (90.0, 90.0, "better")


def test_what_has_no_direction_is_neither() -> None:
    rows = [RowScores(str(k), "", {"length": float(k)}, {"length": k + 9.0 + k % 3}) for k in range(60)]
    pair = only(compare_rows(rows), "length")
    assert (pair.separation, pair.difference.note) == ("not defined", "no direction")
    assert pair.difference.low > 8  # type: ignore[operator]


def test_two_runs_are_paired_by_their_rows() -> None:
    left, right = losses(50, 0.0), losses(50, 0.1)
    pair = only(
        paired_runs(
            Evaluation(row_scores=tuple(left)),
            Evaluation(row_scores=tuple(RowScores(r.id, "", {}, r.after, r.weight) for r in right[10:])),
        ),
        "loss",
    )
    assert (pair.separation, pair.before.rows) == ("better", 40)
    rows = compare.of_two_runs(measured(left), measured(right))
    change = next(c for c in rows if c.metric == "loss")
    assert (change.better, change.separation) == (True, "better")
    printed = compare.Comparison((), tuple(rows), "").as_dict()["metrics"][0]
    assert printed["separation"] == "better"
    assert json.loads(json.dumps(printed, allow_nan=False)) == printed


def test_the_gate_says_whether_the_difference_is_more_than_chance() -> None:
    old, same, worse = measured(losses(50, 0.2)), measured(losses(50, 0.2, seed=0)), measured(losses(50, 0.0))
    assert gate.better(old, same).separation == "not separable"
    assert gate.better(old, worse).separation == "worse"
    assert not gate.better(old, worse).better
    assert gate.better(evaluation(2.0, 1.0), evaluation(2.0, 0.9)).separation is None


def test_an_evaluation_with_rows_is_written_and_read(tmp_path: Any) -> None:
    one = measured(losses(20, 0.1))
    assert Evaluation.read(one.write(tmp_path).parent) == one
    content = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["paired"][0]["separation"] == "better"
    assert content["row_scores"][0]["weight"] == one.row_scores[0].weight


LONG = "слово word 词语。" * 9000
CASES: dict[str, list[tuple[str, str, str]]] = {
    "no rows": [],
    "one row": [("Paris", "Paris.", "London")],
    "empty answers": [("Paris", "", ""), ("Rome", "", ""), ("Oslo", "", " ")],
    "all ties": [("Paris", "Paris", "Paris")] * 20,
    "emoji": [("👍🏽🎉", "👍🏽", "🎉🎉"), ("ok 👍", "👍 ok", "👍"), ("👨‍👩‍👧", "", "👨‍👩‍👧")],
    "right to left": [("مرحبا بالعالم", "مرحبا", "مرحبا بالعالم"), ("שלום עולם", "עולם שלום", "שלום")],
    "lone surrogate": [("a\ud800b", "a", "a\ud800b"), ("x", "x", "y")],
    "100 kB": [(LONG, LONG[5000:], LONG[:-9]), ("a", "b", LONG)],
    "thoughts": [("4", "<think>2+2</think>4", "<think>2+2"), ("5", "5", "<think></think>5")],
    "blanks and marks": [("?!", "...", "?!"), ("\u200b", " ", "\u200b")],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gives_figures_or_a_reason_and_never_nan(case: str) -> None:
    began = time.process_time()
    rows = CASES[case]
    records = [record(k, answer=reference) for k, (reference, _, _) in enumerate(rows)]
    sides = [[Reply(row[side], 1, 1, "stop", 0.1) for row in rows] for side in (1, 2)]
    scored = answer_rows(records, *sides, ("answers", "replies", "thoughts"))
    pairs = compare_rows(scored, {"": section_texts(records, *sides)})
    for pair in pairs:
        text = json.dumps(pair.as_dict(), allow_nan=False)
        assert Paired.from_dict(json.loads(text)) == pair
        for one in (pair.before, pair.after, pair.difference):
            assert one.note or one.low is not None, (pair.metric, one)
            assert one.low is None or one.low - 1e-9 <= one.estimate <= one.high + 1e-9, (pair.metric, one)  # type: ignore[operator]
        if len(rows) < 6:
            assert pair.separation in ("not separable", "not defined")
    wanted = {name for name, metric in METRICS.items() if metric.needs in ("answers", "replies", "thoughts")}
    assert {p.metric for p in pairs} == (wanted if rows else {"bleu", "chrf"})
    assert time.process_time() - began < 60, "it ends"


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("figure", [math.nan, math.inf, None, 0.0, 1.0])
@pytest.mark.parametrize("rows", [1, 7])
def test_each_metric_of_equal_or_missing_figures_is_defined_or_says_why(
    name: str, figure: float | None, rows: int
) -> None:
    metric = METRICS[name]
    scored = [
        RowScores(str(k), "", {name: figure, metric.of_rows or name: figure}, {name: 1.0, metric.of_rows or name: 1.0})
        for k in range(rows)
    ]
    texts = {"": SectionTexts(["a"] * rows, ["a"] * rows, ["a"] * rows)}
    if metric.needs == "labels" and name != "accuracy":
        scored = [RowScores(r.id, "", {**r.before, "accuracy": 1.0}, {**r.after, "accuracy": 1.0}) for r in scored]
    pair = only(compare_rows(scored, texts), name)
    json.dumps(pair.as_dict(), allow_nan=False)
    for one in (pair.before, pair.after, pair.difference):
        assert one.note or one.low is not None
    if metric.interval != "corpus" and (figure is None or not math.isfinite(figure)):
        assert (pair.separation, pair.difference.note) == ("not defined", "not measured")


def test_all_identical_classes_have_figures() -> None:
    rows = [RowScores(str(k), "", {"accuracy": 1.0}, {"accuracy": 1.0}) for k in range(30)]
    pairs = compare_rows(rows, {"": SectionTexts(["a"] * 30, ["a"] * 30, ["a"] * 30)})
    assert [(p.metric, p.after.estimate, p.separation) for p in pairs] == [
        ("accuracy", 1.0, "not separable"),
        ("macro_f1", 1.0, "not separable"),
    ]
    assert only(pairs, "accuracy").after.low < 0.9  # type: ignore[operator]


def test_rows_of_one_id_are_one_row() -> None:
    loss, answer = (
        RowScores("a", "", {"loss": 1.0}, {"loss": 2.0}, 9.0),
        RowScores("a", "", {"chrf": 5.0}, {"chrf": 6.0}),
    )
    (row,) = joined([loss], [answer])
    assert (dict(row.before), row.weight) == ({"loss": 1.0, "chrf": 5.0}, 9.0)
    assert len(joined([loss], [RowScores("a", "file/x")])) == 2
