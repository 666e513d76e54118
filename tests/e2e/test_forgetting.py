"""The real SmolLM2-135M: a run that forgot is told so, a healthy one and one that learned nothing raise nothing.

Four runs of the eleven that `python -m benchmarks forgetting` makes, which takes over half an hour.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.forgetting import RUNS, measure
from tests.real import shared
from tuneloop.evaluation.evaluation import Evaluation


def measured(name: str, folder: Path) -> Evaluation:
    shared("README.md")
    evaluation: Evaluation = measure(RUNS[name], folder)
    assert evaluation.findings == ()
    assert evaluation.forgetting is not None
    return evaluation


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(3600)
def test_ten_epochs_on_one_domain_forget(tmp_path: Path) -> None:
    judged = measured("medical zh, 10 epochs", tmp_path).forgetting
    assert judged is not None
    assert judged.verdict == "forgot"
    assert "general/knowledge-en" in judged.forgot


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["alpaca zh", "persona, 2 epochs"])
def test_a_healthy_run_forgets_nothing(name: str, tmp_path: Path) -> None:
    judged = measured(name, tmp_path).forgetting
    assert judged is not None
    assert judged.forgot == ()


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(3600)
def test_a_run_that_learned_nothing_is_not_separable(tmp_path: Path) -> None:
    evaluation = measured("nothing", tmp_path)
    assert evaluation.forgetting is not None
    assert evaluation.forgetting.verdict == "not separable"
    [loss] = [pair for pair in evaluation.paired if (pair.metric, pair.section) == ("loss", "")]
    assert loss.separation == "not separable"
