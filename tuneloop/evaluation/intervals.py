"""Estimates with their 95% intervals, fit for few rows; what is not defined says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tuneloop.base.language import t

FEW = 50
"""Rows below which a figure carries the note that there are few."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95% interval, None where it is not defined; `note` says why, or that the rows are few."""

    estimate: float | None
    low: float | None
    high: float | None
    rows: int
    method: str
    note: str = ""


def few(rows: int) -> str:
    """The note that a number of rows deserves."""
    return t("few rows") if rows < FEW else ""


def proportion(successes: int, total: int, *, exact: bool = False) -> Estimate:
    """A share with its Wilson interval, or the exact one of Clopper and Pearson.

    >>> estimate = proportion(7, 10)
    >>> estimate.estimate, round(estimate.low, 3), round(estimate.high, 3)
    (0.7, 0.397, 0.892)
    """
    from scipy.stats import binomtest

    method = "Clopper-Pearson" if exact else "Wilson"
    if not total:
        return Estimate(None, None, None, 0, method, t("not defined because there are no rows"))
    interval = binomtest(successes, total).proportion_ci(method="exact" if exact else "wilson")
    return Estimate(successes / total, float(interval.low), float(interval.high), total, method, few(total))


def mean(values: Sequence[float]) -> Estimate:
    """A mean with its BCa bootstrap interval (Efron 1987)."""
    from scipy.stats import bootstrap

    if not values:
        return Estimate(None, None, None, 0, "BCa", t("not defined because there are no rows"))
    centre = float(np.mean(values))
    if len(set(values)) == 1:
        return Estimate(centre, None, None, len(values), "BCa", t("no interval because all rows are equal"))
    found_interval = bootstrap((np.asarray(values, float),), np.mean, rng=np.random.default_rng(0)).confidence_interval
    low, high = float(found_interval.low), float(found_interval.high)
    return Estimate(centre, low, high, len(values), "BCa", few(len(values)))


def mean_difference(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """The mean of paired differences, after minus before, as `mean` does it."""
    return mean([b - a for a, b in zip(before, after, strict=True)])
