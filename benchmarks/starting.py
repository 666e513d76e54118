"""How soon the first training step begins, beside how long the libraries take to import; both as fresh processes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import rows
from benchmarks.environments import home

TIMES = 3
LIBRARIES = "import torch, transformers, peft, accelerate"


def measure(model: str, env: dict[str, str]) -> dict[str, Any]:
    """Median seconds of `tuneloop train` up to its first step, of the imports alone, and of `tuneloop --help`.

    The dataset is cached: a first run has made it. Imports and starts take turns, so both meet the same machine.
    """
    tuneloop = [sys.executable, "-m", "tuneloop"]
    with tempfile.TemporaryDirectory(dir=home()) as made:
        folder = Path(made)
        train = [*tuneloop, "train", str(_recipe(folder, model)), "--workspace", made]
        _run(train, env)
        starts, imports, helps = [], [], []
        for _ in range(TIMES):
            imports.append(_run([sys.executable, "-c", LIBRARIES], env))
            began = time.time()
            _run(train, env)
            starts.append(_first_step(folder) - began)
            helps.append(_run([*tuneloop, "--help"], env))
    found = {"start": starts, "imports": imports, "help": helps}
    return {name: round(statistics.median(seconds), 3) for name, seconds in found.items()} | {"every": found}


def _recipe(folder: Path, model: str) -> Path:
    chats = [
        {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
        for r in rows.alpaca(200)[0]
    ]
    (folder / "rows.json").write_text(json.dumps(chats), encoding="utf-8")
    # JSON is YAML. Short rows: what happens after the first step's beginning is not measured here.
    recipe = {
        "name": "start", "model": {"name": model, "dtype": "float32"}, "data": str(folder / "rows.json"),
        "prepare": {"max_length": 256},
        "train": {"max_steps": 1, "batch_size": 1, "lora": {"targets": ["q_proj", "v_proj"]}, "matmul": "float32",
                  "eval_strategy": "no"},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def _run(command: list[str], env: dict[str, str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout)[-3000:].strip())
    return time.perf_counter() - began


def _first_step(workspace: Path) -> float:
    """When the newest run's loop began: its event `started` stands right before the first step."""
    newest = max((workspace / "runs").glob("start-*/events.jsonl"), key=lambda path: path.stat().st_mtime)
    events = [json.loads(line) for line in newest.read_text(encoding="utf-8").splitlines()]
    return float(next(event["time"] for event in events if event["event"] == "started"))
