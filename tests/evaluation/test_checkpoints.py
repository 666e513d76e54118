from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tuneloop import pipeline
from tuneloop.base.errors import RunError
from tuneloop.evaluation.checkpoints import sweep, swept
from tuneloop.recipe.recipe import make_recipe
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run

METHODS = ("lora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("full", "freeze", "ptuning_v2")))


def losses(*means: float, rows: int = 60) -> list[np.ndarray]:
    def noise(seed: int, spread: float) -> np.ndarray:
        drawn = np.random.default_rng(seed).normal(0, spread, rows)
        return np.asarray(drawn - drawn.mean())

    return [mean + noise(0, 0.3) + noise(k + 1, 0.05) for k, mean in enumerate(means)]


def test_a_last_checkpoint_that_is_worse_is_told() -> None:
    made = swept([10, 20, 30], losses(2.0, 1.5, 1.9), np.ones(60))
    assert made.best == 1
    assert made.sentence == "Step 20 is the best: the last one (step 30) is worse by more than chance."


def test_a_best_one_within_chance_is_not_called_better() -> None:
    made = swept([10, 20], losses(1.5, 1.501), np.ones(60))
    assert made.best == 0
    assert "cannot be told from the last one" in made.sentence
    assert swept([10, 20], losses(1.5, 1.2), np.ones(60)).sentence.startswith("The last checkpoint (step 20)")


def test_no_rows_and_no_numbers_are_no_figure() -> None:
    for given, weights in (([np.zeros(0)] * 2, np.zeros(0)), ([np.full(3, np.nan)] * 2, np.ones(3))):
        made = swept([1, 2], given, weights)
        assert made.best is None
        assert "No checkpoint has a held-out loss" in made.sentence
        assert "nan" not in str(made.as_dict()).lower()


@pytest.mark.parametrize("method", METHODS)
def test_a_sweep_finds_the_losses_that_training_measured(
    method: str, tiny_model: Path, talk_file: Path, tmp_path: Path
) -> None:
    raw = {
        "name": "swept", "model": {"name": str(tiny_model)}, "data": [str(talk_file)], "prepare": {"validation": 4},
        "train": {"method": method, "epochs": 3, "batch_size": 2, "save_total_limit": None, "learning_rate": 1e-2},
    }  # fmt: skip
    recipe, _ = make_recipe(raw)
    dataset = pipeline.prepare(recipe, workspace=tmp_path)
    run = pipeline.train(recipe, dataset, workspace=tmp_path)
    made = sweep(run, lambda text: None)
    measured = {line["step"]: line["eval_loss"] for line in Journal(run.metrics).lines() if "eval_loss" in line}
    assert len(made.checkpoints) == 3
    for one in made.checkpoints:
        assert one.loss.estimate == pytest.approx(measured[one.step], abs=1e-4)
    (made_run := Run(run.path)).checkpoints.joinpath(f"step-{made.checkpoints[0].step}", "state.json").write_text("{")
    assert len(sweep(made_run, lambda text: None).checkpoints) == 2, "a broken one is passed over"
    shutil.rmtree(run.checkpoints)
    with pytest.raises(RunError, match="TL-RUN-NO-CHECKPOINT"):
        sweep(run, lambda text: None)
