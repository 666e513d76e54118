"""A run killed at any instant goes on as if it had never stopped: bit for bit, times aside.

The victim is a real `tuneloop train` process killed with SIGKILL; most of them are forked from one warm process, so
that twenty deaths do not cost twenty imports of torch.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.lives import assert_same, fork, wait
from tuneloop import pipeline
from tuneloop.data.version.dataset import Dataset
from tuneloop.model import checkpoint
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.run import Run

KILLS = int(os.environ.get("TUNELOOP_TEST_KILLS", "24"))
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def recipe_for(model: Path, data: Path, method: str = "lora") -> Recipe:
    recipe, _ = make_recipe(
        {
            "name": "crash", "model": str(model), "data": str(data),
            "train": {
                "method": method, "epochs": 2.5, "batch_size": 4, "learning_rate": 5e-3, "save_strategy": "steps",
                "save_steps": 2, "save_total_limit": 2, "eval_strategy": "steps", "eval_steps": 3,
                **({"lora": {"rank": 4, "dropout": 0.1}} if method == "lora" else {}),
            },
        }
    )  # fmt: skip
    return recipe


@pytest.fixture(scope="module", params=["lora", pytest.param("full", marks=pytest.mark.slow)])
def setting(
    request: pytest.FixtureRequest, tiny_model: Path, talk_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, Dataset, Run, float]:
    """A recipe, its dataset, the run that was never interrupted, and how long that took."""
    workspace = tmp_path_factory.mktemp(f"whole-{request.param}")
    recipe = recipe_for(tiny_model, talk_file, request.param)
    dataset = pipeline.prepare(recipe, workspace=workspace)
    began = time.monotonic()
    pid = fork(lambda: pipeline.train(recipe, dataset, workspace=workspace))
    assert wait(pid) == 0
    return recipe, dataset, Run(workspace / "runs" / "crash-1"), time.monotonic() - began


@pytest.mark.slow
def test_killed_at_random_instants(setting: tuple[Recipe, Dataset, Run, float], tmp_path: Path) -> None:
    recipe, dataset, whole, seconds = setting
    chance = random.Random(20261122)
    kills = 0
    round_ = 0
    while kills < KILLS // 2:
        round_ += 1
        workspace = tmp_path / str(round_)
        run = Run(workspace / "runs" / "crash-1")
        pid = fork(lambda workspace=workspace: pipeline.train(recipe, dataset, workspace=workspace, number=1))
        while True:
            time.sleep(chance.uniform(0.02, seconds))
            os.kill(pid, signal.SIGKILL)
            died = wait(pid)
            kills += died == -signal.SIGKILL
            if died == 0:
                break
            assert died == -signal.SIGKILL
            if checkpoint.newest(run.checkpoints) is None:  # too early: nothing to go on with, so begin again
                run = None
                break
            pid = fork(lambda run=run: pipeline.resume(run))
        if run is not None:
            assert_same(whole, run)


@pytest.mark.parametrize(
    "points",
    [
        pytest.param((0, KILLS // 4, KILLS // 2 - 1), id="some"),
        pytest.param(range(KILLS // 2), id="each", marks=pytest.mark.slow),
    ],
)
def test_killed_inside_saves(
    points: Sequence[int], setting: tuple[Recipe, Dataset, Run, float], tmp_path: Path
) -> None:
    """Die at single file operations of the second save, in the slow tests at each; the first checkpoint must carry the
    run on."""
    recipe, dataset, whole, _ = setting
    for point in points:
        workspace = tmp_path / str(point)

        def victim(workspace: Path = workspace, point: int = point) -> None:
            left = {"saves": 2, "calls": point}
            inner = checkpoint.save

            def dying(*args: Any, **kwargs: Any) -> Path:
                left["saves"] -= 1
                if left["saves"] > 0:
                    return inner(*args, **kwargs)
                sys.addaudithook(hook)
                return inner(*args, **kwargs)

            def hook(event: str, args: tuple[Any, ...]) -> None:
                if event in {"open", "os.rename", "os.mkdir", "shutil.rmtree", "os.remove", "os.rmdir"}:
                    left["calls"] -= 1
                    if left["calls"] < 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            checkpoint.save = dying
            pipeline.train(recipe, dataset, workspace=workspace, number=1)

        died = wait(fork(victim))
        run = Run(workspace / "runs" / "crash-1")
        assert died in {-signal.SIGKILL, 0}
        if died:
            assert wait(fork(lambda run=run: pipeline.resume(run))) == 0
        assert_same(whole, run)


def test_resume_with_other_workers(setting: tuple[Recipe, Dataset, Run, float], tmp_path: Path) -> None:
    """Stopped after a few steps, then resumed with two data workers instead of none."""
    recipe, dataset, whole, _ = setting

    def victim() -> None:
        from tuneloop.training.callbacks import Saver

        inner = Saver.on_step

        def dying(self: Saver, state: checkpoint.State, result: Any) -> None:
            inner(self, state, result)
            if state.step == 7:
                os.kill(os.getpid(), signal.SIGKILL)

        Saver.on_step = dying
        pipeline.train(recipe, dataset, workspace=tmp_path, number=1)

    assert wait(fork(victim)) == -signal.SIGKILL
    run = Run(tmp_path / "runs" / "crash-1")
    assert wait(fork(lambda: pipeline.resume(run, ["train.workers=2"]))) == 0
    assert_same(whole, run)
    events = [json.loads(line) for line in run.events.read_text(encoding="utf-8").splitlines()]
    assert [e["step"] for e in events if e["event"] == "resumed"] == [6]
