"""What the meters of a run cost: python -m benchmarks watching [--steps 24]. Some minutes; wants under 1 %.

A run of the same rows at every step, whose meters are on at one step and off at the next (phases, norms by layer,
smoothing, loss by file, a look at the machine). CPU time counts, so that another program's share does not: of the whole
step, on against off, and of the calls themselves, which is the finer measure where a step's own time varies by more.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import rows, training
from benchmarks.environments import home

LIMIT = 0.01
LINE = "{:<10}{:>7}{:>12}{:>12}{:>16}{:>18}"
JOBS: dict[str, dict[str, Any]] = {
    "lora": {
        "model": training.CHAT,
        "batch": 4,
        "length": 256,
        "train": {"lora": {"rank": 8, "targets": ["q_proj", "v_proj"]}},
    },
    "encoder": {"model": training.ENCODER, "batch": 4, "length": 64, "train": {"method": "full"}},
}  # fmt: skip


class Switch:
    """Meters on at every other step. CPU seconds: `steps` by on and off, `clips` of clipping alike, `calls` a step."""

    def __init__(self) -> None:
        self.on, self.last = True, time.process_time()
        self.steps: dict[bool, list[float]] = {True: [], False: []}
        self.clips: dict[bool, list[float]] = {True: [0.0], False: [0.0]}
        self.calls = [0.0]

    def turn(self) -> None:
        """A step has ended."""
        now = time.process_time()
        self.steps[self.on].append(now - self.last)
        self.on = not self.on
        (self.clips[self.on]).append(0.0)
        if self.on:
            self.calls.append(0.0)
        self.last = time.process_time()

    def over(self, meter: Callable[..., Any], without: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            if not self.on:
                return without(*given)
            began = time.thread_time()
            try:
                return meter(*given)
            finally:
                self.calls[-1] += time.thread_time() - began

        return call

    def clipping(self, ours: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            began = time.process_time()
            try:
                return (ours if self.on else plain)(*given)
            finally:
                self.clips[self.on][-1] += time.process_time() - began

        return call


@contextmanager
def switched() -> Iterator[Switch]:
    """Inside, the meters of this process are on at one step and off at the next."""
    import torch

    from tuneloop.monitor.gradients import GradientNorms, Gradients
    from tuneloop.monitor.machine import Machine
    from tuneloop.monitor.phases import Phases
    from tuneloop.monitor.smoothing import Smooth
    from tuneloop.training.callbacks import Metrics
    from tuneloop.training.row_sources import RowSources

    def plain(own: Gradients, limit: float) -> GradientNorms:
        total = torch.nn.utils.clip_grad_norm_(own.weights, limit or float("inf"))
        return GradientNorms(total, torch.zeros(0), ())

    def nothing(*given: Any) -> dict[str, float]:
        return {}

    switch, before = Switch(), []

    def put(kind: Any, name: str, function: Callable[..., Any]) -> None:
        before.append((kind, name, getattr(kind, name)))
        setattr(kind, name, function)

    for kind, name in ((Phases, "begin"), (Phases, "end"), (Phases, "read"), (GradientNorms, "read"),
                       (Machine, "read"), (RowSources, "means")):  # fmt: skip
        put(kind, name, switch.over(getattr(kind, name), nothing))
    put(Smooth, "add", switch.over(Smooth.add, lambda own, value: value))
    put(Gradients, "clip", switch.clipping(Gradients.clip, plain))
    step = Metrics.on_step

    def on_step(own: Metrics, *given: Any) -> None:
        step(own, *given)
        switch.turn()

    put(Metrics, "on_step", on_step)
    try:
        yield switch
    finally:
        for kind, name, function in before:
            setattr(kind, name, function)


def data(folder: Path, job: str, batch: int) -> list[str]:
    """Rows in two files, so that the loss by file is among the meters."""
    names = []
    for n in range(2):
        part = slice(n * batch // 2, (n + 1) * batch // 2)
        if job == "encoder":
            path = folder / f"{n}.csv"
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, ["text", "label"])
                writer.writeheader()
                writer.writerows(rows.reviews(batch)[0][part])
        else:
            path = folder / f"{n}.json"
            chats = [
                {"messages": [{"role": "user", "content": r["prompt"]},
                              {"role": "assistant", "content": r["completion"]}]}
                for r in rows.alpaca(batch)[0][part]
            ]  # fmt: skip
            path.write_text(json.dumps(chats), encoding="utf-8")
        names.append(str(path))
    return names


def once(folder: Path, model: str, job: str, steps: int) -> dict[str, Any]:
    """CPU seconds of each step of a run of this process, meters on and off, and of the meters' calls."""
    import tuneloop

    told = JOBS[job]
    recipe, _ = tuneloop.make_recipe({
        "name": "watching", "model": {"name": model, "dtype": "float32"},
        "data": data(folder, job, told["batch"]),
        "prepare": {"max_length": told["length"], "too_long": "cut_right", "validation": 0, "dedupe": "off"},
        "train": {"max_steps": steps, "batch_size": told["batch"], "matmul": "float32", "eval_strategy": "no",
                  "save_strategy": "no", **told["train"]},
    })  # fmt: skip
    dataset = tuneloop.prepare(recipe, workspace=folder)
    foreseen, _ = tuneloop.plan(recipe, dataset, workspace=folder)
    with switched() as switch:
        run = tuneloop.train(recipe, dataset, workspace=folder, foreseen=foreseen)
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    assert any("sources" in line and "grad_groups" in line for line in lines), "all meters were there"
    warm = 2
    on, off = switch.steps[True][warm:], switch.steps[False][warm:]
    clip = statistics.median(switch.clips[True][warm:-1]) - statistics.median(switch.clips[False][warm:-1])
    return {"on": on, "off": off, "calls": statistics.mean(switch.calls[warm:-1]), "clip": clip}


def shares(found: dict[str, Any]) -> dict[str, float]:
    """`paired`: median of (on - off) / off over neighbouring steps, with its standard error; `direct`: of the calls."""
    pairs = [(a - b) / b for a, b in zip(found["on"], found["off"], strict=False)]
    step = statistics.median(found["off"])
    error = 1.2533 * statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else float("nan")
    direct = (found["calls"] + max(0.0, found["clip"])) / step
    return {"step": step, "paired": statistics.median(pairs), "error": error, "direct": direct}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks watching")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--only", choices=JOBS)
    wanted = parser.parse_args(arguments)
    print(LINE.format("job", "pairs", "step, s", "meters, ms", "share of calls", "on against off"))
    over = []
    for job in [wanted.only] if wanted.only else JOBS:
        model = training.model(JOBS[job]["model"])
        steps = wanted.steps if job == "lora" else 4 * wanted.steps
        with tempfile.TemporaryDirectory(dir=home()) as made:
            code = (
                "import json; from pathlib import Path; from benchmarks.watching import once;"
                f"print('RESULT', json.dumps(once(Path({made!r}), {model!r}, {job!r}, {steps})))"
            )
            found = training.measured([sys.executable, "-c", code], training.environment())
        told = shares(found)
        print(
            LINE.format(
                job, len(found["on"]), f"{told['step']:.3f}", f"{1000 * told['direct'] * told['step']:.2f}",
                f"{told['direct']:.2%}", f"{told['paired']:+.2%} ± {told['error']:.2%}",
            )
        )  # fmt: skip
        over += [job] if told["direct"] > LIMIT else []
    if over:
        raise SystemExit(f"over {LIMIT:.0%} of a step: {', '.join(over)}")
