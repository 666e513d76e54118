"""A LoRA step beside another program: python -m benchmarks busy. About three minutes on two quiet cores.

Each process trains the same few rows twice: on the machine as it is, then beside one program that keeps a core busy.
It waits and gives way as tuneloop does (after: threads soon sleep, beside other programs at once), or as before
(GOMP_SPINCOUNT=20000, so that they spin, whatever else runs). The
processes of both kinds take turns, and of each step the best of its kind counts, so that a busy moment of the machine
counts for neither. Wants: beside a busy core at most 2.2 times the quiet time, and quiet within 2% of before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import rows, training
from benchmarks.environments import home

PAIRS, STEPS, BATCH = 2, 5, 2
BUSY, QUIET = 2.2, 1.02
WAYS = {"before": {"GOMP_SPINCOUNT": "20000"}, "after": {}}
"""What the environment adds; without it tuneloop sets OMP_WAIT_POLICY=passive and GOMP_SPINCOUNT=3000."""
LINE = "{:<8}{:>14}{:>14}{:>10}"


@contextmanager
def busy() -> Iterator[None]:
    """One program that keeps a core busy meanwhile."""
    spinner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        yield
    finally:
        spinner.kill()
        spinner.wait()


def once(folder: Path, model: str, steps: int, way: str) -> dict[str, list[float]]:
    """Seconds of each step, quiet and busy, of two runs in this process."""
    import tuneloop
    from tuneloop.training import waiting

    if way == "before":
        waiting.INTERVAL = float("inf")
    recipe, _ = tuneloop.make_recipe({
        "name": "busy", "model": {"name": model, "dtype": "float32"}, "data": str(folder / "rows.json"),
        "prepare": {"max_length": 256, "too_long": "cut_right", "validation": 0, "dedupe": "off"},
        "train": {"max_steps": steps, "batch_size": BATCH, "matmul": "float32", "eval_strategy": "no",
                  "save_strategy": "no", "lora": {"rank": 8, "alpha": 32, "targets": ["q_proj", "v_proj"]}},
    })  # fmt: skip
    dataset = tuneloop.prepare(recipe, workspace=folder)
    foreseen, _ = tuneloop.plan(recipe, dataset, workspace=folder)
    found: dict[str, list[float]] = {
        "quiet": _seconds(tuneloop.train(recipe, dataset, workspace=folder, foreseen=foreseen))
    }
    with busy():
        found["busy"] = _seconds(tuneloop.train(recipe, dataset, workspace=folder, foreseen=foreseen))
    return found


def _seconds(run: Any) -> list[float]:
    """Of each step but the first, which warms up."""
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").split("\n") if line]
    return [line["clock"]["seconds"] for line in lines if "loss" in line][1:]


def measure(pairs: int, steps: int) -> dict[str, dict[str, list[list[float]]]]:
    """Way -> quiet and busy -> a list of step times a process."""
    if training.threads() < 2:
        raise SystemExit("one core has no threads that wait for each other: there is nothing to measure")
    model, found = training.model(training.CHAT), {way: {"quiet": [], "busy": []} for way in WAYS}
    bare = {k: v for k, v in training.environment().items() if k not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}}
    with tempfile.TemporaryDirectory(dir=home()) as made:
        chats = [
            {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
            for r in rows.alpaca(steps * BATCH)[0]
        ]
        for n in range(2 * pairs):
            # before, after, after, before: what drifts over the session falls on both alike
            way = list(WAYS)[(n + n // 2) % 2]
            folder = Path(made) / str(n)
            folder.mkdir()
            (folder / "rows.json").write_text(json.dumps(chats), encoding="utf-8")
            code = (
                "import json; from pathlib import Path; from benchmarks.busy import once;"
                f"print('RESULT', json.dumps(once(Path({str(folder)!r}), {model!r}, {steps}, {way!r})))"
            )
            told = training.measured([sys.executable, "-c", code], bare | WAYS[way])
            for state, seconds in told.items():
                found[way][state].append(seconds)
            print(
                f"  {way}: " + ", ".join(f"{k} {sum(v) / len(v):.2f} s a step" for k, v in told.items()),
                file=sys.stderr,
            )
    return found


def best(processes: list[list[float]]) -> float:
    """Mean seconds of a step: of each step the best of all processes.

    >>> best([[1.0, 4.0], [2.0, 3.0]])
    2.0
    """
    steps = [min(every) for every in zip(*processes, strict=True)]
    return sum(steps) / len(steps)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks busy")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="processes of each kind")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of a run, of which the first warms up")
    wanted = parser.parse_args(arguments)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5:
        print(f"other programs run (load {load:.1f}): these figures are worth little", file=sys.stderr)
    found = {
        way: {state: best(every) for state, every in states.items()}
        for way, states in measure(wanted.pairs, wanted.steps).items()
    }
    print(LINE.format("", "quiet, s/step", "busy, s/step", "ratio"))
    for way, one in found.items():
        print(LINE.format(way, f"{one['quiet']:.3f}", f"{one['busy']:.3f}", f"{one['busy'] / one['quiet']:.2f}"))
    after, before = found["after"], found["before"]
    beside, alone = after["busy"] / after["quiet"], after["quiet"] / before["quiet"]
    print(
        f"beside one busy core, times the quiet step: {beside:.2f} (wanted: at most {BUSY}): {_verdict(beside <= BUSY)}"
    )
    print(f"quiet step, times that of before: {alone:.3f} (wanted: at most {QUIET}): {_verdict(alone <= QUIET)}")


def _verdict(reached: bool) -> str:
    return "reached" if reached else "not reached"
