"""Real models on real rows: every method learns what it is shown, measured on rows that it is not."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.made import jsonl
from tests.real import shared
from tuneloop import pipeline
from tuneloop.base.environment import environment
from tuneloop.methods.table import METHODS
from tuneloop.recipe.recipe import make_recipe
from tuneloop.runs.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def pulled(name: str) -> str:
    """A model's name; the test is skipped where it was not pulled."""
    if not (environment().home / "models" / name).is_dir():
        assert not os.environ.get("CI"), "CI must pull the model before the tests"
        pytest.skip(f"tuneloop model pull {name}")
    return name


def trained(folder: Path, model: str, data: Any, validation: int, **train: Any) -> Run:
    recipe, _ = make_recipe({
        "name": train["method"], "model": model, "data": data, "train": train,
        "prepare": {"validation": validation, "max_length": 256, "too_long": "cut_left"},
    })  # fmt: skip
    return pipeline.train(recipe, pipeline.prepare(recipe, workspace=folder), workspace=folder)


def measured(run: Run) -> list[float]:
    """The held-out losses of a run, in order."""
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [line["eval_loss"] for line in lines if "eval_loss" in line]


FALL = {"lora": 0.02, "qlora": 0.04, "full": 0.05, "freeze": 0.004, "ptuning_v2": 0.05, "prompt_tuning": 0.02}
"""How far the held-out loss falls at least, from 1.43. The last two of thirty blocks can do little in two dozen steps."""


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_to_answer(method: str, tmp_path: Path) -> None:
    """SmolLM2-135M, two dozen steps of short rows at the method's usual rate."""
    with shared("llamafactory/alpaca_en_demo.json").open(encoding="utf-8") as file:
        short = (r for r in json.load(file) if len(r["instruction"]) + len(r["output"]) < 600)
        data = jsonl(tmp_path / "short.jsonl", islice(short, 92))
    run = trained(tmp_path, pulled("smollm2-135m-instruct"), str(data), 20, method=method, max_steps=24, batch_size=4,
                  eval_strategy="steps", eval_steps=6, warmup_steps=2)  # fmt: skip
    losses = measured(run)
    evaluation = pipeline.evaluate(run)
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert evaluation["after"]["loss"] < evaluation["before"]["loss"] - FALL[method]
    assert evaluation["after"]["loss"] == pytest.approx(losses[-1], abs=2e-3)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_encoder_learns_to_judge_films(method: str, tmp_path: Path) -> None:
    """MiniLM, 22M weights, on 600 reviews; of 200 others it judges seven in ten rightly, by chance it would be five."""
    data = [{"path": str(shared("imdb/train.csv")), "sample": 600, "split": "train"},
            {"path": str(shared("imdb/test.csv")), "sample": 200, "split": "validation"}]  # fmt: skip
    rate = {"lora": 2e-3, "full": 1e-4}[method]
    run = trained(tmp_path, pulled("all-minilm-l6-v2"), data, 0, task="classify", method=method, epochs=2,
                  batch_size=16, learning_rate=rate)  # fmt: skip
    after = pipeline.evaluate(run)["after"]
    assert after["accuracy"] > 0.7
