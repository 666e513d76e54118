"""Sentiment as the guides do it, by the shipped recipes on real reviews: 500 to train, 300 to measure."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.real import shared
from tuneloop import pipeline
from tuneloop.base.environment import environment
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.run_figures import paired_runs
from tuneloop.runs.run import open_run

MINILM = ("sentiment_minilm_full", "sentiment_minilm_freeze", "sentiment_minilm_lora")
SIDES = ("--set", "data[0].sample=500", "--set", "data[1].split=validation")


def trained(recipe: str, workspace: Path, model: str) -> Evaluation:
    """The evaluation of a recipe's run on the reviews."""
    if not (environment().home / "models" / model).is_dir():
        pytest.skip(f"pull {model} first")
    files = [str(shared(f"imdb/{side}.csv")) for side in ("train", "test")]
    done = subprocess.run(
        [sys.executable, "-m", "tuneloop", "run", recipe, *files, *SIDES, "--workspace", str(workspace)],
        capture_output=True, text=True, timeout=2400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    measured = Evaluation.read(open_run(f"{recipe}-1", workspace).path)
    assert measured is not None
    return measured


def learned(measured: Evaluation) -> None:
    """All 300 test rows were measured, and the accuracy is above chance with its whole interval."""
    right = next(pair for pair in measured.paired if (pair.metric, pair.section) == ("accuracy", ""))
    print(f"accuracy {right.after}")
    assert right.after.rows == measured.after.texts == 300
    assert right.after.method == "wilson"
    assert right.after.low is not None
    assert right.after.low > 0.5
    assert right.separation == "better"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_small_encoder_learns_sentiment_by_each_method_and_they_are_compared(tmp_path: Path) -> None:
    runs = [trained(recipe, tmp_path, "all-minilm-l6-v2") for recipe in MINILM]
    for measured in runs:
        learned(measured)
    for left, right in pairwise(runs):
        pair = next(p for p in paired_runs(left, right) if p.metric == "accuracy")
        assert pair.difference.rows == 300, "the rows of both, by their ids"
        assert pair.p is not None
        assert pair.separation in ("better", "worse", "not separable")
    compared = pipeline.compare_runs([open_run(f"{name}-1", tmp_path) for name in MINILM])
    assert len(compared.pairs) == 3
    assert not compared.warnings


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(3600)
def test_a_small_language_model_learns_sentiment_with_lora(tmp_path: Path) -> None:
    learned(trained("sentiment_smollm2", tmp_path, "smollm2-135m-instruct"))
