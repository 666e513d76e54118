"""How far raters agree, and how strong models are by paired comparisons."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np

from tuneloop.base.language import t
from tuneloop.base.optional import need
from tuneloop.evaluation.intervals import Estimate, few

Level = Literal["nominal", "ordinal", "interval", "ratio"]
Distance = Callable[[Any, Any], float]
Label = tuple[str, str, Any]
"""(rater, unit, label): one rater's label of one unit."""
RESAMPLES = 999


def alpha(labels: Iterable[Label], level: Level) -> Estimate:
    """Krippendorff's alpha (2011, "Computing Krippendorff's alpha-reliability"), of units that two raters labelled.

    nltk leaves out units with one label, as the paper does; it calls labels that never differ an agreement of 1, where
    the paper has no alpha (no disagreement can be expected), so here it is not defined. nltk knows no ordinal
    distance: it is made of the frequencies of the labels, as the paper does.
    """
    method = f"Krippendorff's alpha, {level}"
    by_unit = defaultdict(list)
    for label in labels:
        by_unit[label[1]].append(label)
    pairable = [label for unit in by_unit.values() if len(unit) > 1 for label in unit]
    units = len({unit for _, unit, _ in pairable})
    if len({rater for rater, _, _ in labels_of(by_unit)}) < 2:
        return _undefined(units, method, t("not defined because there is one rater"))
    if not pairable:
        return _undefined(units, method, t("not defined because no row was seen by two raters"))
    if len({label for _, _, label in pairable}) == 1:
        return _undefined(units, method, t("not defined because all ratings are equal"))
    agreement = need("nltk.metrics.agreement", extra="rate")
    task = agreement.AnnotationTask(data=pairable, distance=_distance(level, [label for *_, label in pairable]))
    return Estimate(float(task.alpha()), None, None, units, method, few(units))


def labels_of(by_unit: dict[str, list[Label]]) -> list[Label]:
    """All labels of all units."""
    return [label for unit in by_unit.values() for label in unit]


def _distance(level: Level, labels: Sequence[Any]) -> Distance:
    """The squared difference of two labels at a level of measurement; ordinal: between their cumulated frequencies."""
    if level == "nominal":
        return lambda a, b: float(a != b)
    if level == "interval":
        return lambda a, b: float((a - b) ** 2)
    if level == "ratio":
        return lambda a, b: ((a - b) / (a + b)) ** 2 if a != b else 0.0
    counts, below, place = Counter(labels), 0.0, dict[Any, float]()
    for label in sorted(counts):
        place[label] = below + counts[label] / 2
        below += counts[label]
    return lambda a, b: (place[a] - place[b]) ** 2


@dataclass(frozen=True, slots=True)
class PairedChoice:
    """One rater's choice between two models on one row: 1 the first is better, 0 the second, 0.5 neither."""

    row: str
    first: str
    second: str
    outcome: float


@dataclass(frozen=True, slots=True)
class Strength:
    """A model by Bradley and Terry: its log-odds against the baseline, and its chance to be chosen over it."""

    model: str
    log_odds: Estimate
    chance: Estimate


def bradley_terry(choices: Sequence[PairedChoice], baseline: str) -> list[Strength]:
    """The strengths of all models (Bradley and Terry 1952; the maximum likelihood by evalica), the baseline first.

    A tie is half a win for each. The interval is Wald's on the log-odds, where the likelihood is nearly a parabola,
    with a variance that is robust to what several ratings of one row have in common (rows are the clusters; Liang and
    Zeger 1986) and the quantile of Student's t with one degree less than there are rows. Resampling rows would need the
    same independence and no more, but draws sets in which a model never loses, where no strength exists.
    """
    models = [baseline, *sorted({name for c in choices for name in (c.first, c.second)} - {baseline})]
    rows, method = len({c.row for c in choices}), "Bradley-Terry"
    if reason := _not_estimable(choices, models, rows):
        nothing = _undefined(rows, method, reason)
        return [Strength(model, nothing, nothing) for model in models]
    theta = _log_odds(choices, models)
    covariance = _robust_covariance(choices, models, theta)
    from scipy.stats import t as student

    reach = float(student.ppf(0.975, rows - 1))
    strengths = []
    for n, model in enumerate(models):
        centre, half = float(theta[n]), 0.0 if n == 0 else reach * math.sqrt(covariance[n - 1, n - 1])
        ends = (centre - half, centre, centre + half)
        odds = Estimate(centre, ends[0], ends[2], rows, method, few(rows))
        low, chance, high = (1 / (1 + math.exp(-x)) for x in ends)
        strengths.append(Strength(model, odds, Estimate(chance, low, high, rows, method, few(rows))))
    return strengths


def _not_estimable(choices: Sequence[PairedChoice], models: Sequence[str], rows: int) -> str:
    """Why there is no maximum of the likelihood, "" where there is one: each model must, over others, have beaten and
    been beaten by each other one (Ford 1957)."""
    if len(models) < 2 or not choices:
        return t("not defined because fewer than two models were compared")
    if rows < 2:
        return t("not defined because there is one row")
    if all(c.outcome == 0.5 for c in choices):
        return t("not defined because all comparisons are ties")
    wins = defaultdict(set)
    for c in choices:
        if c.outcome > 0:
            wins[c.first].add(c.second)
        if c.outcome < 1:
            wins[c.second].add(c.first)
    reaches = {model: _reached(model, wins) for model in models}
    if all(len(reached) == len(models) for reached in reaches.values()):
        return ""
    return t("not defined because a model was never chosen over another, or never compared with it")


def _reached(start: str, wins: dict[str, set[str]]) -> set[str]:
    reached, todo = {start}, [start]
    while todo:
        for model in wins[todo.pop()] - reached:
            reached.add(model)
            todo.append(model)
    return reached


def _log_odds(choices: Sequence[PairedChoice], models: Sequence[str]) -> Any:
    evalica: Any = need("evalica", extra="rate")
    winner = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}
    fitted = evalica.bradley_terry(
        [c.first for c in choices],
        [c.second for c in choices],
        [winner[c.outcome] for c in choices],
        tolerance=1e-13,
        limit=100_000,
    )
    scores = np.log(np.array([float(fitted.scores[model]) for model in models]))
    return scores - scores[0]


def _robust_covariance(choices: Sequence[PairedChoice], models: Sequence[str], theta: Any) -> Any:
    """The covariance of the log-odds of all models but the first, with rows as clusters."""
    place = {model: n for n, model in enumerate(models)}
    design = np.zeros((len(choices), len(models)))
    for n, c in enumerate(choices):
        design[n, place[c.first]], design[n, place[c.second]] = 1.0, -1.0
    chance = 1 / (1 + np.exp(-design @ theta))
    information = (design * (chance * (1 - chance))[:, None]).T @ design
    residuals = np.array([c.outcome for c in choices]) - chance
    order = sorted(range(len(choices)), key=lambda n: choices[n].row)
    scores = [
        (design[index] * residuals[index, None]).sum(axis=0)
        for index in (list(group) for _, group in groupby(order, key=lambda n: choices[n].row))
    ]
    bread = np.linalg.inv(information[1:, 1:])
    meat = np.array(scores)[:, 1:]
    return bread @ (meat.T @ meat) @ bread * (len(scores) / (len(scores) - 1))


def kappa(first: Sequence[str], second: Sequence[str]) -> Estimate:
    """Cohen's kappa (1960) of two raters of the same rows, with a percentile interval by resampling rows."""
    method = "Cohen's kappa"
    if not first:
        return _undefined(0, method, t("not defined because there are no rows"))
    if len({*first, *second}) == 1:
        return _undefined(len(first), method, t("not defined because all ratings are equal"))
    agreement = need("nltk.metrics.agreement", extra="rate")

    def of(rows: Any) -> float:
        chosen = [
            (name, str(n), labels[row]) for name, labels in (("a", first), ("b", second)) for n, row in enumerate(rows)
        ]
        if len({label for *_, label in chosen}) == 1:
            return math.nan
        return float(agreement.AnnotationTask(data=chosen).kappa())

    return _resampled(of, len(first), method)


def spearman(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Estimate:
    """Spearman's rank correlation (1904) of scores, several a row, with a percentile interval by resampling rows."""
    method, x, y = "Spearman", np.asarray(first, float), np.asarray(second, float)
    if len(x) < 3:
        return _undefined(len(x), method, t("not defined because there are fewer than three rows"))
    if len(np.unique(x)) == 1 or len(np.unique(y)) == 1:
        return _undefined(len(x), method, t("not defined because all ratings are equal"))
    from scipy.stats import spearmanr

    def of(rows: Any) -> float:
        a, b = x[rows].ravel(), y[rows].ravel()
        return float(spearmanr(a, b).statistic) if a.std() and b.std() else math.nan

    return _resampled(of, len(x), method)


def _resampled(statistic: Callable[[Any], float], rows: int, method: str) -> Estimate:
    """A statistic of all rows, and the middle 95% of it in `RESAMPLES` draws of as many rows with replacement."""
    draw = np.random.default_rng(0)
    drawn = np.array([statistic(draw.integers(0, rows, rows)) for _ in range(RESAMPLES)])
    defined = drawn[np.isfinite(drawn)]
    centre = statistic(np.arange(rows))
    if len(defined) < RESAMPLES * 0.95:
        return Estimate(centre, None, None, rows, method, t("no interval because too few rows differ"))
    low, high = np.quantile(defined, [0.025, 0.975])
    return Estimate(centre, float(low), float(high), rows, method, few(rows))


def _undefined(rows: int, method: str, reason: str) -> Estimate:
    return Estimate(None, None, None, rows, method, reason)
