"""Estimates with 95 % intervals that are fit for small sets. The resamples are the same every time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tuneloop.base.language import t

CONFIDENCE = 0.95
FEW = 50
"""Rows below which the interval of a mean is noted as "few rows": it tends to be too narrow."""
LEAST = 6
"""Rows below which no exact test here reaches 5 %: of n rows it has 2^n outcomes, so its least p is 2 / 2^n."""
SEED = 12345
RESAMPLES = 4999
SWAPS = 1024

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval of CONFIDENCE. Nothing in it is ever NaN or infinite: what is not defined is None."""

    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    rows: int = 0
    """Independent rows that it comes from."""
    method: str = ""
    """"wilson", "exact", "newcombe", "bca", "bootstrap"; "" where there is no interval."""
    note: str = ""
    """"few rows", or the reason why it is not defined: a key of `notes` in the words of the report, "" for none."""

    def __post_init__(self) -> None:
        for name in ("estimate", "low", "high"):
            number = getattr(self, name)
            object.__setattr__(self, name, float(number) if number is not None and math.isfinite(number) else None)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Estimate:
        return cls(**{f.name: content[f.name] for f in fields(cls) if f.name in content})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def remark(self) -> str:
        """Its note in the reader's words, "" for none."""
        return notes().get(self.note, self.note)

    @property
    def bounds(self) -> str:
        """Its interval as a cell of a table; "" where there is none.

        >>> Estimate(-0.5, -0.7, -0.3).bounds, Estimate(0.5).bounds
        ('-0.700 … -0.300', '')
        """
        return "" if self.low is None or self.high is None else f"{self.low:.3f} … {self.high:.3f}"

    def scaled(self, scale: float) -> Estimate:
        """The same of `scale` times the figure: a share as a percentage.

        >>> proportion(1, 4).scaled(100).estimate
        25.0
        """
        estimate, low, high = (None if f is None else scale * f for f in (self.estimate, self.low, self.high))
        return Estimate(estimate, low, high, self.rows, self.method, self.note)


def notes() -> dict[str, str]:
    """A note of an estimate -> its words."""
    return {
        "few rows": t("few rows, so the interval may be too narrow"),
        "no rows": t("not defined because there are no rows"),
        "one row": t("one row has no interval"),
        "equal rows": t("all rows are equal, so there is no interval"),
        "not measured": t("not measured before and after on the same rows"),
        "too small": t("another seed changes as much, or the table shows no change"),
        "no direction": t("more of it is neither better nor worse"),
        "at chance": t("not defined: the base model is at chance"),
        "no rows apart": t("no figure for single rows"),
    }


def few(rows: int) -> str:
    """The note of a figure of so many rows: "few rows" or "".

    >>> few(49), few(50)
    ('few rows', '')
    """
    return "few rows" if rows < FEW else ""


def proportion(successes: int, total: int, *, exact: bool = False) -> Estimate:
    """A share of rows with Wilson's score interval (1927), or with the exact one of Clopper and Pearson (1934).

    Raises ValueError where there are more successes than rows, or fewer than none.

    >>> half = proportion(5, 10)
    >>> half.estimate, round(half.low, 4), round(half.high, 4)
    (0.5, 0.2366, 0.7634)
    >>> round(proportion(0, 10, exact=True).high, 4), proportion(0, 0).note
    (0.3085, 'no rows')
    """
    if not 0 <= successes <= total:
        raise ValueError(f"{successes} of {total} rows")
    if not total:
        return Estimate(note="no rows")
    method = "exact" if exact else "wilson"
    interval = _stats().binomtest(int(successes), int(total)).proportion_ci(CONFIDENCE, method=method)
    return Estimate(successes / total, interval.low, interval.high, int(total), method)


def proportion_difference(before: Sequence[bool], after: Sequence[bool]) -> Estimate:
    """Share after minus share before of the same rows, with the interval of Newcombe's method 10.

    Source: Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", Statistics in Medicine 17, 2635-2650. Raises ValueError for sides of unequal length.

    >>> change = proportion_difference([1, 1] + 19 * [0], [1, 0] + 7 * [1] + 12 * [0])
    >>> round(change.estimate, 3), round(change.low, 3), round(change.high, 3)
    (0.286, 0.026, 0.507)
    """
    first, last = _sides(np.asarray(before, bool), np.asarray(after, bool))
    n = len(first)
    if not n:
        return Estimate(note="no rows")
    old, new = proportion(int(first.sum()), n), proportion(int(last.sum()), n)
    agree = int((first & last).sum()) * int((~first & ~last).sum()) - int((first & ~last).sum()) * int(
        (~first & last).sum()
    )
    spread = int(first.sum()) * int((~first).sum()) * int(last.sum()) * int((~last).sum())
    # The correlation of both sides; a positive one with a correction for continuity.
    phi = (max(agree - n / 2, 0) if agree > 0 else agree) / math.sqrt(spread) if spread else 0.0
    (p1, l1, u1), (p2, l2, u2) = ((one.estimate or 0.0, one.low or 0.0, one.high or 0.0) for one in (new, old))
    down = math.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
    up = math.sqrt((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2)
    change = int(last.sum() - first.sum()) / n if n else 0.0
    return Estimate(change, max(change - down, -1.0), min(change + up, 1.0), n, "newcombe")


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Two-sided p of the exact McNemar test (1947) that as many rows were won as lost; 1 where neither happened.

    >>> mcnemar([False] * 6, [True] * 6), mcnemar([True], [True])
    (0.03125, 1.0)
    """
    first, last = _sides(np.asarray(before, bool), np.asarray(after, bool))
    won, lost = int((~first & last).sum()), int((first & ~last).sum())
    return float(_stats().binomtest(won, won + lost).pvalue) if won + lost else 1.0


def mean(values: ArrayLike) -> Estimate:
    """The mean of rows, with a BCa bootstrap interval (Efron 1987, "Better bootstrap confidence intervals").

    >>> mean([1.0]).note, mean([]).note, mean([2.0, 2.0]).note
    ('one row', 'no rows', 'equal rows')
    >>> some = mean(range(60))
    >>> some.estimate, some.low < 29.5 < some.high, some.method, some.note
    (29.5, True, 'bca', '')
    """
    return bootstrapped(_mean, np.asarray(values, np.float64))


def mean_difference(before: ArrayLike, after: ArrayLike) -> Estimate:
    """Mean after minus mean before of the same rows: the mean of their differences, as `mean`.

    >>> mean_difference([1, 2, 3], [2, 2, 4]).estimate
    0.6666666666666666
    """
    first, last = _sides(np.asarray(before, np.float64), np.asarray(after, np.float64))
    return mean(last - first)


def ratio(sums: ArrayLike, weights: ArrayLike, *, of: Callable[[Any], Any] = lambda share: share) -> Estimate:
    """Sum of the sums by sum of the weights, rows resampled (BCa): a held-out loss is the loss of all rows by their
    label tokens. `of` turns it into another figure, exp into the perplexity.

    >>> ratio([2.0, 6.0], [1, 3]).estimate
    2.0
    """
    total, weight = _sides(np.asarray(sums, np.float64), np.asarray(weights, np.float64))

    def figure(total: Floats, weight: Floats, axis: int = -1) -> Floats:
        share: Floats = of(total.sum(axis) / weight.sum(axis))
        return share

    return bootstrapped(figure, *_weighed(weight, total, weight))


def ratio_difference(
    before: ArrayLike, after: ArrayLike, weights: ArrayLike, *, of: Callable[[Any], Any] = lambda share: share
) -> Estimate:
    """The `ratio` of the sums after minus that of the sums before, of the same rows with the same weights.

    >>> ratio_difference([2.0, 6.0], [1.0, 3.0], [1, 3]).estimate
    -1.0
    """
    first, last = _sides(np.asarray(before, np.float64), np.asarray(after, np.float64))
    first, weight = _sides(first, np.asarray(weights, np.float64))

    def figure(first: Floats, last: Floats, weight: Floats, axis: int = -1) -> Floats:
        total = weight.sum(axis)
        change: Floats = of(last.sum(axis) / total) - of(first.sum(axis) / total)
        return change

    return bootstrapped(figure, *_weighed(weight, first, last, weight))


def bootstrapped(statistic: Callable[..., Any], *columns: Floats) -> Estimate:
    """A statistic of rows, which are resampled whole: `statistic(*columns, axis=-1)` of float64 [..., rows] each.

    The interval is BCa, or of percentiles ("bootstrap") where BCa is not defined.
    """
    n = len(columns[0])
    if not n:
        return Estimate(note="no rows")
    figure = float(statistic(*columns, axis=-1))
    if n == 1 or not math.isfinite(figure):
        return Estimate(figure, rows=n, note="one row" if n == 1 else "not measured")
    if all((column == column[0]).all() for column in columns):
        return Estimate(figure, rows=n, note="equal rows")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of a degenerate distribution, for which there is another interval below
        drawn, method = _bootstrap(statistic, columns, "BCa"), "bca"
        if not np.isfinite([drawn.confidence_interval.low, drawn.confidence_interval.high]).all():
            drawn, method = _bootstrap(statistic, columns, "percentile", drawn), "bootstrap"
    interval = drawn.confidence_interval
    return Estimate(figure, interval.low, interval.high, n, method, few(n))


def _bootstrap(statistic: Callable[..., Any], columns: Sequence[Floats], method: str, drawn: Any = None) -> Any:
    resamples = {"n_resamples": RESAMPLES} if drawn is None else {"n_resamples": 0, "bootstrap_result": drawn}
    batch = max(1, 2_000_000 // len(columns[0]))  # 16 MB of resampled rows at a time
    return _stats().bootstrap(
        columns,
        statistic,
        paired=len(columns) > 1,
        vectorized=True,
        axis=-1,
        batch=batch,
        confidence_level=CONFIDENCE,
        method=method,
        rng=np.random.default_rng(SEED),
        **resamples,
    )


def sign_flip(differences: ArrayLike) -> float:
    """Two-sided p of the paired permutation test that each row's difference could as well have the other sign.

    All signs are tried where there are at most 12 rows, 4,999 draws of them otherwise. Fewer than six rows cannot reach
    5 %. Source: Fisher 1935, "The design of experiments", section 21.

    >>> sign_flip([1.0] * 5), sign_flip([1.0] * 6), sign_flip([0.0, 0.0]), sign_flip([])
    (0.0625, 0.03125, 1.0, 1.0)
    """
    change = np.asarray(differences, np.float64)
    change = change[change != 0]
    if len(change) < 2:  # one row can as well have the other sign
        return 1.0
    rng = np.random.default_rng(SEED)
    if len(change) <= 12:
        exact = _stats().permutation_test(
            (change,), _mean, permutation_type="samples", vectorized=True, n_resamples=2 ** len(change), rng=rng
        )
        return float(exact.pvalue)

    def drawn(size: tuple[int, ...]) -> Floats:
        signs: Floats = np.abs(change) * (2.0 * rng.integers(0, 2, size) - 1.0)
        return signs

    tried = _stats().monte_carlo_test(
        change, drawn, _mean, vectorized=True, n_resamples=RESAMPLES, batch=max(1, 2_000_000 // len(change))
    )
    return float(tried.pvalue)


def swap_test(change: Callable[[Any, Any], float], after: NDArray[Any], before: NDArray[Any]) -> float:
    """Two-sided p of the paired permutation test that each row's two answers could as well be exchanged.

    `change(after, before)` is the metric after minus before. All exchanges of at most ten rows, 1,024 draws otherwise.
    """
    if len(after) < 2:
        return 1.0
    swapped = _stats().permutation_test(
        (after, before),
        change,
        permutation_type="samples",
        n_resamples=SWAPS,
        vectorized=False,
        rng=np.random.default_rng(SEED),
    )
    return float(swapped.pvalue)


def _mean(values: Floats, axis: int = -1) -> Floats:
    center: Floats = values.mean(axis)
    return center


def _sides(before: NDArray[Any], after: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    if before.shape != after.shape:
        raise ValueError(f"{len(before)} rows before but {len(after)} after")
    return before, after


def _weighed(weight: Floats, *columns: Floats) -> list[Floats]:
    """The columns without the rows that weigh nothing: they are no evidence."""
    return [column[weight > 0] for column in columns]


@cache
def _stats() -> Any:
    return import_module("scipy.stats")
