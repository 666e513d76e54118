"""The runs behind docs/*/methods.md: ordinary ones, each in a process of its own, and what is kept of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import rows
from benchmarks.environments import ROOT, home
from benchmarks.machine import machine

FILE = ROOT / "benchmarks" / "methods.json"
SIDES = ("--set", "data[0].sample=500", "--set", "data[1].split=validation")
SENTIMENT = ("TRAIN", "TEST", *SIDES)
"""TRAIN and TEST stand for imdb/train.csv and imdb/test.csv of the sample data."""


@dataclass(frozen=True, slots=True)
class MethodRun:
    """One run: its section of the page, its name there, and the words behind `tuneloop run`."""

    section: str
    model: str
    method: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.model}/{self.method}"


RUNS = (
    MethodRun("sentiment", "all-MiniLM-L6-v2", "full", ("sentiment_minilm_full", *SENTIMENT)),
    MethodRun("sentiment", "all-MiniLM-L6-v2", "freeze", ("sentiment_minilm_freeze", *SENTIMENT)),
    MethodRun("sentiment", "all-MiniLM-L6-v2", "lora", ("sentiment_minilm_lora", *SENTIMENT)),
    MethodRun("sentiment", "SmolLM2-135M", "lora", ("sentiment_smollm2", *SENTIMENT)),
    MethodRun("chat", "SmolLM2-135M", "full", ("lora_vs_full", "--variant", "full")),
    MethodRun("chat", "SmolLM2-135M", "lora", ("lora_vs_full", "--variant", "lora")),
    MethodRun(
        "chat", "SmolLM2-135M", "freeze",
        ("lora_vs_full", "--variant", "full", "--set", "compare.variants.full={method: freeze, learning_rate: 2e-4}"),
    ),
    MethodRun(
        "chat", "SmolLM2-135M", "ptuning_v2",
        ("lora_vs_full", "--variant", "full", "--set", "compare.variants.full={method: ptuning_v2}"),
    ),
)  # fmt: skip


def command(run: MethodRun) -> str:
    """The command line as the page shows it."""
    return " ".join(f"'{word}'" if set(word) & set(" []{}") else word for word in ("tuneloop", "run", *run.words))


def measure(chosen: Sequence[MethodRun]) -> None:
    """Run them one after the other, and keep what each of them tells."""
    workspace = home() / "methods"
    places = {"TRAIN": rows.data() / "imdb" / "train.csv", "TEST": rows.data() / "imdb" / "test.csv"}
    for run in chosen:
        words = [str(places.get(word, word)) for word in run.words]
        before = {path.name for path in (workspace / "runs").glob("*")}
        began = time.time()
        process = subprocess.Popen([sys.executable, "-m", "tuneloop", "run", *words, "--workspace", str(workspace)])
        _, status, used = os.wait4(process.pid, 0)
        new = sorted({path.name for path in (workspace / "runs").glob("*")} - before)
        if status or len(new) != 1:
            raise SystemExit(f"{command(run)} failed with {status}")
        store(run, workspace / "runs" / new[0], cpu=used.ru_utime + used.ru_stime, wall=time.time() - began)


def store(run: MethodRun, folder: Path, *, cpu: float, wall: float) -> None:
    """Write what is kept of a finished run into methods.json, in the place of what was there of it."""
    content = read()
    told = {"section": run.section, "model": run.model, "method": run.method, "command": command(run),
            "cpu": round(cpu, 1), "wall": round(wall, 1), **kept_of(folder)}  # fmt: skip
    others = [one for one in content["runs"] if (one["section"], one["model"], one["method"]) != _key(told)]
    order = [(one.section, one.model, one.method) for one in RUNS]
    content["runs"] = sorted([*others, told], key=lambda one: order.index(_key(one)))
    content |= {"date": time.strftime("%Y-%m-%d"), "machine": machine()}
    text = json.dumps({**content, "runs": []}, ensure_ascii=False)[:-3]
    lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in content["runs"])
    FILE.write_text(f"{text}[\n{lines}\n]}}\n", encoding="utf-8")


def _key(one: dict[str, Any]) -> tuple[str, str, str]:
    return one["section"], one["model"], one["method"]


def read() -> dict[str, Any]:
    """What methods.json holds; no runs where it is not there."""
    if not FILE.is_file():
        return {"date": "", "machine": {}, "runs": []}
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def kept_of(folder: Path) -> dict[str, Any]:
    """Of a run folder: its cost, what each held-out row scored after training, probes, and what was forgotten."""
    from tuneloop.evaluation.evaluation import Evaluation
    from tuneloop.evaluation.row_places import row_places
    from tuneloop.report.costs import cost
    from tuneloop.report.run_view import read as read_run
    from tuneloop.runs.run import Run

    run = read_run(folder)
    evaluation = run.evaluation or Evaluation()
    places = row_places(Run(folder))
    scored = [
        [places.get(row.id, row.id), row.weight, _figures(row.after)]
        for row in evaluation.row_scores
        if row.section == ""
    ]
    forgot = evaluation.forgetting
    facts = None if forgot is None or forgot.facts is None else forgot.facts.difference.as_dict()
    return {
        "cost": cost(run).as_dict(),
        "rows": scored,
        "probes": [[one.name, one.after, one.total] for one in evaluation.probes],
        "forgetting": facts,
    }


def _figures(scores: Mapping[str, float | None]) -> dict[str, float]:
    """Of a row's scores those that the page is made from."""
    return {name: round(score, 5) for name in ("accuracy", "loss") if (score := scores.get(name)) is not None}
