"""A run that trackers follow, for tests: real training, stopped in the middle and taken up in another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SESSION = """
import json, socket, sys
from pathlib import Path

asked = []
def watch(event, arguments):
    if event == "socket.connect" and arguments[0].family in (socket.AF_INET, socket.AF_INET6):
        asked.append(repr(arguments[1]))
    elif event == "socket.getaddrinfo":
        asked.append(repr(arguments[0]))
sys.addaudithook(watch)

from tuneloop import pipeline
from tuneloop.recipe.recipe import make_recipe
from tuneloop.runs.run import Run
from tuneloop.training.callbacks import Metrics

wish = json.loads(sys.argv[1])
if wish["resume"]:
    pipeline.resume(Run(Path(wish["workspace"]) / "runs" / "tracked-1"))
else:
    recipe, _ = make_recipe(wish["recipe"])
    write = Metrics.on_step
    def stopping(self, state, outcome):
        write(self, state, outcome)
        if state.step == 3:
            import os, signal
            os.kill(os.getpid(), signal.SIGINT)
    Metrics.on_step = stopping
    dataset = pipeline.prepare(recipe, workspace=Path(wish["workspace"]))
    pipeline.train(recipe, dataset, workspace=Path(wish["workspace"]))
print(json.dumps(asked))
"""


def tracked(model: Path, data: Path, workspace: Path, trackers: list[str]) -> Path:
    """A run of at least 6 steps that these trackers follow: stopped after step 3 and taken up, in a process each.

    Fails where one of them looks for a machine of the network.
    """
    train = {"epochs": 1, "batch_size": 4, "learning_rate": 0.01, "lora": {"rank": 4}, "logging_steps": 1}
    train |= {"eval_strategy": "steps", "eval_steps": 3}
    recipe = {
        "name": "tracked",
        "model": str(model),
        "data": str(data),
        "train": train,
        "watch": {"trackers": trackers},
    }
    for resume in (False, True):
        wish = {"recipe": recipe, "workspace": str(workspace), "resume": resume}
        done = subprocess.run(
            [sys.executable, "-c", SESSION, json.dumps(wish)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TUNELOOP_LANG": "en"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "left out" not in done.stderr, done.stderr
        assert done.stdout.splitlines() == ["[]"], done.stdout  # trackers print nothing here and ask nobody
    return workspace / "runs" / "tracked-1"
