"""Evaluations for tests: what evaluation.json holds, made short."""

from __future__ import annotations

from typing import Any

from tuneloop.evaluation.evaluation import COUNTS, Evaluation, ProbeResult, Scores


def scores(loss: float | None = 2.0, **more: Any) -> Scores:
    """Scores with this loss; metrics and counts by their names."""
    counts = {"label_tokens": 9, **{key: more.pop(key) for key in COUNTS if key in more}}
    return Scores({"loss": loss, **more}, **counts)


def texts(loss: float, accuracy: float, macro_f1: float, count: int = 10) -> Scores:
    """Scores of a classifier."""
    return Scores({"loss": loss, "accuracy": accuracy, "macro_f1": macro_f1}, texts=count)


def probe(name: str = "p0", passed: bool = True, after: int = 1, **more: Any) -> ProbeResult:
    """A probe of one prompt that was not answered so before."""
    return ProbeResult(**{"name": name, "expect": "x", "total": 1, "before": 0, "after": after, "passed": passed,
                          "at_least": 1, **more})  # fmt: skip


def evaluation(
    before: float | Scores | None = 2.0, after: float | Scores | None = 2.0, *passed: bool,
    files: dict[str, tuple[float, float]] | None = None, **more: Any,
) -> Evaluation:  # fmt: skip
    """An evaluation with these losses or scores, with probes p0, p1, …, and the losses of each file before and after."""
    sides = [
        Scores(side.metrics, side.rows, side.label_tokens, side.texts,
               {name: scores(losses[k]) for name, losses in (files or {}).items()})
        for k, side in enumerate(one if isinstance(one, Scores) else scores(one) for one in (before, after))
    ]  # fmt: skip
    probes = tuple(probe(f"p{n}", one) for n, one in enumerate(passed))
    return Evaluation(**{"before": sides[0], "after": sides[1], "held": ("a", "b"), "probes": probes, **more})
