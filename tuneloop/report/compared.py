"""Runs compared: their figures on the rows they share, what each cost, and how their recipes differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneloop.base.language import listed, t
from tuneloop.evaluation.compare import different_rows
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.metrics import METRICS
from tuneloop.evaluation.row_places import by_place
from tuneloop.evaluation.run_figures import RunFigures, RunPair, run_figures, run_pairs
from tuneloop.report import gains
from tuneloop.report.costs import Cost, cost
from tuneloop.report.run_view import Folder
from tuneloop.runs.run import Run

IGNORED = {"name", "compare", "serve", "evaluate"}
"""Sections of a recipe that are not what runs are compared for."""


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run of a comparison: its method, the keys of its recipe that others have otherwise, and its cost."""

    name: str
    method: str
    settings: Mapping[str, str]
    cost: Cost
    evaluation: Evaluation

    @property
    def title(self) -> str:
        return f"{self.name} ({self.method})" if self.method else self.name


@dataclass(frozen=True, slots=True)
class ComparedRuns:
    """Several runs side by side."""

    runs: tuple[ComparedRun, ...]
    figures: tuple[RunFigures, ...]
    pairs: tuple[RunPair, ...]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """What --json prints, and comparison.json of a run holds."""
        runs = [
            {"name": r.name, "method": r.method, "settings": dict(r.settings), "cost": asdict(r.cost)}
            for r in self.runs
        ]
        return {
            "runs": runs,
            "figures": [one.as_dict() for one in self.figures],
            "pairs": [one.as_dict() for one in self.pairs],
            "warnings": list(self.warnings),
        }

    def sentences(self) -> list[str]:
        """Of any two runs which one is better, or that they cannot be told apart."""
        return [pair_words(one, [run.title for run in self.runs]) for one in self.pairs]


def compared(folders: Sequence[Folder]) -> ComparedRuns:
    """Compare finished runs; those of one method stand together, in the order in which the methods come first."""
    methods = list(dict.fromkeys(_method(folder) for folder in folders))
    folders = sorted(folders, key=lambda folder: methods.index(_method(folder)))
    evaluations = by_place([Run(folder.path) for folder in folders], [f.evaluation or Evaluation() for f in folders])
    settings = differing([folder.recipe for folder in folders])
    runs = [
        ComparedRun(folder.path.name, _method(folder), own, cost(folder), evaluation)
        for folder, own, evaluation in zip(folders, settings, evaluations, strict=True)
    ]
    known = [(folder, one) for folder, one in zip(folders, evaluations, strict=True) if folder.evaluation is not None]
    warnings = [
        t("{run} was not evaluated; measure it with: tuneloop evaluate {run}", run=folder.path.name)
        for folder in folders
        if folder.evaluation is None
    ]
    for folder, other in known[1:]:
        begun, first = known[0]
        if words := different_rows(first, other, [first.held, other.held]):
            warnings.append(t("{left} and {right}: {words}", left=begun.path.name, right=folder.path.name, words=words))
    return ComparedRuns(tuple(runs), tuple(run_figures(evaluations)), tuple(run_pairs(evaluations)), tuple(warnings))


def _method(folder: Folder) -> str:
    train = folder.recipe.get("train")
    return str(train.get("method") or "") if isinstance(train, dict) else ""


def differing(recipes: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Of each recipe the dotted keys, with what they are, that not all recipes have alike.

    >>> differing([{"train": {"method": "lora", "epochs": 2}}, {"train": {"method": "full", "epochs": 2}}])
    [{'train.method': 'lora'}, {'train.method': 'full'}]
    """
    flat = [_flat({k: v for k, v in recipe.items() if k not in IGNORED}) for recipe in recipes]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    odd = [key for key in keys if len({str(one.get(key)) for one in flat}) > 1]
    return [{key: "–" if one.get(key) is None else str(one[key]) for key in odd} for one in flat]


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, setting in section.items():
        if isinstance(setting, dict):
            out |= _flat(setting, f"{prefix}{key}.")
        elif isinstance(setting, list) and setting and all(isinstance(one, dict) and "path" in one for one in setting):
            out[f"{prefix}{key}"] = listed(Path(str(one["path"])).name for one in setting)
        else:
            out[f"{prefix}{key}"] = setting
    return out


def pair_words(one: RunPair, titles: Sequence[str]) -> str:
    """Two runs in a sentence: the second's figure less the first's, its interval, and what follows from it."""
    pair, metric = one.pair, METRICS[one.pair.metric]
    figure = f"{gains.signed(pair.difference.estimate, metric.digits)} {gains.interval(pair.difference, metric.digits)}"
    parts = [figure.strip(), t("{n} rows", n=f"{pair.difference.rows:,}")]
    if pair.p is not None:
        parts.append(f"p = {pair.p:.2g}")
    facts = {"left": titles[one.left], "right": titles[one.right], "metric": metric.label(), "figures": listed(parts)}
    return t("{right} against {left}, {metric}: {word} ({figures})", word=pair.word, **facts)
