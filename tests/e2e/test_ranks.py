"""Several processes train as one: torchrun on this machine's CPU gives the losses, the files and the words of one process."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.conftest import tiny_folder
from tuneloop import pipeline
from tuneloop.model import checkpoint
from tuneloop.recipe.recipe import dump, make_recipe
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.run import Run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="torch has no gloo launcher there")


def recipe_for(model: Path, data: Path, method: str, epochs: float, dropout: float = 0.0) -> Recipe:
    """Steps of five dialogues in rows of 96 tokens: the number of rows is odd as often as even, so ranks idle."""
    recipe, _ = make_recipe(
        {
            "name": "ranks", "model": str(model), "data": str(data), "prepare": {"max_length": 96},
            "train": {
                "method": method, "matmul": "float32", "epochs": epochs, "batch_size": 5, "token_budget": 96, "learning_rate": 5e-3,
                "save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 3,
                **({"lora": {"rank": 4, "dropout": dropout}} if method == "lora" else {}),
            },
        }
    )  # fmt: skip
    return recipe


@pytest.fixture
def torchrun() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `tuneloop train …` in two processes that meet on loopback; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(workspace: Path, *arguments: str) -> subprocess.Popen[str]:
        launch = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
                  "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", "--no-python"]  # fmt: skip
        words = [sys.executable, "-m", "tuneloop", "train", *arguments, "--workspace", str(workspace)]
        process = subprocess.Popen(
            [sys.executable, *launch, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_alike(one: Run, two: Run) -> None:
    ours, theirs = ([{k: v for k, v in m.items() if k != "clock"} for m in lines(r.metrics)] for r in (one, two))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        # Two processes make as many passes each, so that one may be idle; one process never is.
        assert 0 == a.pop("padding", 0) <= b.pop("padding", 0) < 0.5
        assert a.pop("grad_groups", {}) == pytest.approx(b.pop("grad_groups", {}), abs=1e-4)
        assert a == pytest.approx(b, abs=1e-4)
    last = [checkpoint.newest(r.checkpoints) for r in (one, two)]
    assert last[0] is not None
    assert last[1] is not None
    assert last[0].name == last[1].name
    left, right = (load_file(p / "trained.safetensors") for p in last)
    assert all(left[k].allclose(right[k], atol=2e-3) for k in left)
    assert one.trained_folder() is not None
    assert two.trained_folder() is not None


def test_two_processes_lose_what_one_loses(
    torchrun: Callable[..., subprocess.Popen[str]], tiny_model: Path, talk_file: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(tiny_model, talk_file, "lora", 1.5)
    file = tmp_path / "ranks.yaml"
    file.write_text(dump(recipe), encoding="utf-8")
    process = torchrun(tmp_path / "two", str(file))
    whole = pipeline.train(recipe, pipeline.prepare(recipe, workspace=tmp_path / "one"), workspace=tmp_path / "one")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert [p.name for p in (tmp_path / "two" / "runs").iterdir()] == ["ranks-1"], "one run, not one a process"
    run = Run(tmp_path / "two" / "runs" / "ranks-1")
    assert_alike(whole, run)
    assert [e["event"] for e in lines(run.events)] == [e["event"] for e in lines(whole.events)]
    assert out.count("Trained: ") == 1, "one of them speaks"
    assert err.count("held-out loss") == len([m for m in lines(run.metrics) if "eval_loss" in m])


def test_two_processes_stop_together_and_go_on(
    torchrun: Callable[..., subprocess.Popen[str]], tiny_model: Path, talk_file: Path, tmp_path: Path
) -> None:
    """Ctrl-C in a terminal reaches the launcher and both processes; both must leave after the same step.

    The model's head is a weight of its own here: an idle process must reach it as well.
    """
    base = tiny_folder(tmp_path / "untied", "llama", vocab_size=480, max_position_embeddings=128)
    for part in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (base / part).write_bytes((tiny_model / part).read_bytes())
    recipe = recipe_for(base, talk_file, "full", 6)
    file = tmp_path / "ranks.yaml"
    file.write_text(dump(recipe), encoding="utf-8")
    process = torchrun(tmp_path / "two", str(file))
    whole = pipeline.train(recipe, pipeline.prepare(recipe, workspace=tmp_path / "one"), workspace=tmp_path / "one")
    run = Run(tmp_path / "two" / "runs" / "ranks-1")
    until = time.monotonic() + 60
    while not (run.metrics.exists() and run.metrics.read_bytes().count(b"\n") >= 6):
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    last = [m["step"] for m in lines(run.metrics) if "loss" in m][-1]
    total = [m["step"] for m in lines(whole.metrics)][-1]
    assert last < total, "it was stopped before its end"
    assert run.trained_folder() is None
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    assert newest.name == f"step-{last}", "the last step is saved"

    process = torchrun(tmp_path / "two", "--resume", "ranks-1")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert_alike(whole, run)
    assert [e["step"] for e in lines(run.events) if e["event"] == "resumed"] == [last]


def test_two_processes_with_dropout_go_on_bit_for_bit(
    torchrun: Callable[..., subprocess.Popen[str]], tiny_model: Path, talk_file: Path, tmp_path: Path
) -> None:
    """A finished run, and the same one taken up again from its first checkpoint, as if the machine had died then."""
    recipe = recipe_for(tiny_model, talk_file, "lora", 1.5, dropout=0.3)
    file = tmp_path / "ranks.yaml"
    file.write_text(dump(recipe), encoding="utf-8")
    process = torchrun(tmp_path / "two", str(file))
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    run, whole = Run(tmp_path / "two" / "runs" / "ranks-1"), Run(tmp_path / "whole")
    shutil.copytree(run.path, whole.path)
    shutil.rmtree(run.path / "adapter")
    first, *later = sorted(run.checkpoints.iterdir(), key=lambda p: int(p.name.removeprefix("step-")))
    assert later
    for path in later:
        shutil.rmtree(path)
    process = torchrun(tmp_path / "two", "--resume", "ranks-1")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert [f"step-{e['step']}" for e in lines(run.events) if e["event"] == "resumed"] == [first.name]
    ours, theirs = ([{k: v for k, v in m.items() if k != "clock"} for m in lines(r.metrics)] for r in (run, whole))
    assert ours == theirs
    weights = Path("adapter") / "adapter_model.safetensors"
    assert (run.path / weights).read_bytes() == (whole.path / weights).read_bytes()
