from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from tests.evaluations import evaluation, texts
from tuneloop.evaluation import classification, metrics
from tuneloop.evaluation.compare import changes, fresh, nothing_held
from tuneloop.evaluation.evaluation import Classes, ClassScores, Evaluation, Scores


def test_the_figures_are_those_of_the_textbook() -> None:
    matrix = classification.confusion([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0], 3)
    assert matrix == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert metrics.accuracy(matrix) == pytest.approx(4 / 6)
    first, second, third = map(asdict, metrics.by_class(matrix))
    assert first == pytest.approx({"texts": 3, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})
    assert second == pytest.approx({"texts": 2, "precision": 2 / 3, "recall": 1.0, "f1": 0.8})
    assert third == {"texts": 1, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert metrics.macro_f1(matrix) == pytest.approx((2 / 3 + 0.8 + 0) / 3)


def test_a_class_that_nobody_has_or_says_does_not_count() -> None:
    assert metrics.macro_f1([[2, 0, 0], [0, 1, 0], [0, 0, 0]]) == 1.0


def test_nothing_measured_is_none() -> None:
    assert metrics.accuracy([[0]]) is None
    assert metrics.macro_f1([[0]]) is None


def test_large_scores_do_not_overflow() -> None:
    assert classification.chances(np.array([[1000.0, 0.0]], np.float32)).tolist() == [[1.0, 0.0]]


def test_the_closing_table_has_accuracy_and_says_that_a_new_head_is_chance() -> None:
    nothing = ClassScores((), ())
    measured = evaluation(texts(0.7, 0.5, 0.4), texts(0.3, 0.9, 0.9), classes=Classes((), True, nothing, nothing))
    better = {c.metric: c.better for c in changes(measured) if c.measured}
    assert better == {"loss": True, "accuracy": True, "macro_f1": True}
    assert fresh(measured)
    assert not fresh(evaluation(2.0, 1.0))
    assert not nothing_held(measured)
    assert nothing_held(Evaluation(after=Scores(texts=0)))
    assert not nothing_held(Evaluation())
