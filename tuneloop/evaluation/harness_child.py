"""Runs in a process of its own, as `python harness_child.py WISH OUT`: lm-evaluation-harness, and nothing of tuneloop.

WISH is JSON: `tasks`, and either `check` (which of them cannot be loaded, and why) or `model` (the arguments of its
class hf) and `device`. A task is a name that the harness knows, or a YAML file of its own.
"""

from __future__ import annotations

import json
import math
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def tasks_of(names: list[str]) -> list[Any]:
    """The tasks as the harness takes them: a name, or what a YAML file holds."""
    load = import_module("lm_eval.tasks._yaml_loader").load_yaml
    return [load(name, resolve_func=True) if name.endswith((".yaml", ".yml")) else name for name in names]


def missing(names: list[str]) -> dict[str, str]:
    """Task -> why it cannot be loaded."""
    manager, reasons = import_module("lm_eval.tasks").TaskManager(), {}
    load = import_module("lm_eval.tasks").get_task_dict
    for name, task in zip(names, tasks_of(names), strict=True):
        try:
            if not load([task], manager):
                reasons[name] = "no such task"
        except BaseException as error:  # whatever its packages raise, it is the reason
            reasons[name] = " ".join(f"{type(error).__name__}: {error}".split())
    return reasons


def scores(names: list[str], arguments: dict[str, Any], device: str) -> list[dict[str, Any]]:
    """Every metric of every task."""
    evaluate = import_module("lm_eval").simple_evaluate
    measured = evaluate(model="hf", model_args=arguments, tasks=tasks_of(names), device=device)
    out = []
    for task, metrics in measured["results"].items():
        up = measured.get("higher_is_better", {}).get(task, {})
        rows = measured.get("n-samples", {}).get(task, {}).get("effective", 0)
        for key, score in metrics.items():
            metric, _, filtered = key.partition(",")
            if metric.endswith("_stderr") or isinstance(score, bool) or not isinstance(score, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{filtered}")
            out.append(
                {
                    "task": task,
                    "metric": metric if filtered in {"", "none"} else f"{metric} ({filtered})",
                    "score": finite(score),
                    "error": finite(error),
                    "rows": rows,
                    "up": bool(up.get(metric, True)),
                }
            )
    return out


def finite(number: Any) -> float | None:
    """The number, None where it is none."""
    return float(number) if isinstance(number, int | float) and math.isfinite(number) else None


def main(wish_file: str, out: str) -> None:
    wish = json.loads(Path(wish_file).read_text(encoding="utf-8"))
    if wish.get("check"):
        answer: dict[str, Any] = {"missing": missing(wish["tasks"])}
    else:
        answer = {"scores": scores(wish["tasks"], wish["model"], wish["device"])}
    Path(out).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3])
