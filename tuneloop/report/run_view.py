"""What a run folder and its dataset folder hold, read once, in the forms that the report asks for."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tuneloop.base.errors import RunError
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.planning.cautions import cautions, foreign
from tuneloop.report.verdict import STARTS
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run


@dataclass(frozen=True)
class Folder:
    """What a run folder holds; an empty dict, list or text for a file that is not there, None for an evaluation."""

    path: Path
    recipe_text: str
    recipe: dict[str, Any]
    plan: dict[str, Any]
    events: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    evaluation: Evaluation | None
    dataset: dict[str, Any]

    @property
    def workspace(self) -> Path:
        return Run(self.path).workspace

    @property
    def dataset_path(self) -> Path | None:
        """The dataset's folder, None if it is unknown or gone."""
        return Run(self.path).dataset()

    @property
    def manifest(self) -> dict[str, Any]:
        """The dataset's manifest, {} if there is none to read."""
        path = self.dataset_path
        try:
            loaded = json.loads((path / "manifest.json").read_text(encoding="utf-8")) if path else {}
        except (OSError, ValueError):
            return {}
        return loaded if isinstance(loaded, dict) else {}

    def cautions(self) -> list[str]:
        """What everybody must know of this run: what is wrong with it, then of the data that it was trained on."""
        wrong = [finding.caution for finding in self.evaluation.findings] if self.evaluation else []
        counts = self.dataset.get("counts") or self.manifest.get("counts") or {}
        if not counts:
            return wrong
        folder = Path(self.dataset_path or "")
        model = self.recipe.get("model")
        name = str(model.get("name")) if isinstance(model, dict) else ""
        return [
            *wrong,
            *cautions(counts, self.manifest.get("steps") or (), str(folder / "ledger.jsonl")),
            *foreign(name, folder),
        ]


def read(run: Path) -> Folder:
    """Read a run folder. Raises RunError TL-RUN-MISSING (no such folder) or TL-RUN-DAMAGED (a file does not parse)."""
    if not run.is_dir():
        raise RunError("TL-RUN-MISSING", where=str(run), path=run)
    run = run.resolve()
    recipe = run / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else ""
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RunError("TL-RUN-DAMAGED", where=str(recipe), error=" ".join(str(error).split())) from error
    return Folder(
        path=run,
        recipe_text=text,
        recipe=loaded if isinstance(loaded, dict) else {},
        plan=Run(run).read("plan.json"),
        events=list(Journal(run / "events.jsonl").lines()),
        metrics=list(Journal(run / "metrics.jsonl").lines()),
        samples=list(Journal(run / "samples.jsonl").lines()),
        evaluation=Evaluation.read(run),
        dataset=Run(run).read("dataset.json"),
    )


def clock(folder: Folder, key: str) -> list[float]:
    """The finite values of one reading (seconds, tokens_per_second, memory_gb) over the lines of metrics."""
    return [reading for line in folder.metrics if (reading := _reading(line, key)) is not None]


def _reading(line: dict[str, Any], key: str) -> float | None:
    """A finite number of a metrics line's clock; None where there is none."""
    readings = line.get("clock")
    number = readings.get(key) if isinstance(readings, dict) else None
    return number if isinstance(number, int | float) and math.isfinite(number) else None


def spent(folder: Folder) -> float:
    """Seconds of training, pauses between a stop and a resume not counted; 0.0 if unknown.

    A run that was never resumed says so itself as it finishes. Else the clocks of the metrics are read, in stretches
    that begin with a start or a resume.
    """
    finished = next((e for e in folder.events if e.get("event") == "finished"), {})
    seconds = finished.get("seconds")
    if isinstance(seconds, int | float) and not any(e.get("event") == "resumed" for e in folder.events):
        return float(seconds)
    starts = [e["time"] for e in folder.events if e.get("event") in STARTS and isinstance(e.get("time"), int | float)]
    stretches: dict[int, list[tuple[float, float]]] = {}
    for line in folder.metrics:
        if (time := _reading(line, "time")) is not None:
            place = sum(s <= time for s in starts)
            stretches.setdefault(place, []).append((time, _reading(line, "seconds") or 0.0))
    return sum(max(c for c, _ in s) - min(c - took for c, took in s) for s in stretches.values())
