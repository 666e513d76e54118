"""Rows whose loss stays extreme over the passes of a run: mostly wrong labels. A run is compared with itself.

What is right is learned first, what is wrong only by heart and later (the small-loss observation: Arpit et al. 2017,
arXiv:1706.05394; Pleiss et al. 2020, arXiv:2001.10528; Swayamdipta et al. 2020, arXiv:2009.10795). So the losses of the
first pass tell nothing, since nothing is learned yet, and late ones tell nothing, since all is known by heart. In
between the rows are divided in two by Otsu's threshold; where there are two groups, far apart, the upper one is listed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.recipe.watch import Level

PASSES = 10
"""Passes that are looked at; later ones find every row known by heart."""
LEAST_ROWS = 50
"""Of fewer rows nothing can be said."""
CONTRAST = 2.2
"""From here on two groups are far apart (`SuspiciousRows.contrast`). With a tenth of the labels of topics changed, 2.8
to 12 were measured after three passes, without at most 0.9; with sentiment, changed or not, at most 1.7: there a hard
row cannot be told from a wrong one."""
CUT = 0.4
"""Where between the means of the two groups the list begins: Otsu's own threshold, near the middle, misses too many."""
FEW_ROWS, FEW_SHARE = 5, 0.01
"""A shorter list is a note: every real set has some."""
MANY_SHARE = 0.35
"""Of more rows than these it cannot be said that they are the exception."""


@dataclass(frozen=True, slots=True)
class SuspiciousRows:
    """Numbers of examples, the most extreme first, and the mean loss of each over the passes that tell most.

    median: of all `of` rows over the same passes. contrast: how far the two groups are apart, which is how much lower
    the probability is that the model gives to what the upper one teaches (0 to 1), times the distance of their means in
    standard deviations within them, of the square root of the loss.
    """

    rows: tuple[int, ...]
    losses: tuple[float, ...]
    median: float
    of: int
    contrast: float
    level: Level


@dataclass(frozen=True, slots=True, eq=False)
class _Division:
    """Rows divided in two over one pass or two: `upper` bool [n], `mean` loss float64 [n]."""

    upper: NDArray[np.bool_]
    mean: NDArray[np.float64]
    contrast: float


def suspicious_rows(losses: NDArray[Any], labels: NDArray[np.int64] | None = None) -> SuspiciousRows | None:
    """The rows whose loss stays extreme; None where there are none, or where nothing can be told.

    losses [passes, n]: what each row lost in each whole pass, NaN where it was not seen. labels int64 [n]: the class of
    each; without them a list is a note, since answers differ in how well they can be foreseen.
    """
    if len(losses) < 2 or losses.shape[1] < LEAST_ROWS:
        return None
    last = min(len(losses), PASSES)
    windows = [(k, end) for k in range(1, last) for end in (k + 1, k + 2) if end <= last]
    divisions = [division for first, end in windows if (division := _divided(losses[first:end])) is not None]
    best = max(divisions, key=lambda one: one.contrast, default=None)
    if best is None or best.contrast < CONTRAST:
        return None
    upper = best.upper if labels is None else best.upper & ~_unlearned(best.upper, labels)
    seen = int(np.isfinite(best.mean).sum())
    listed = np.flatnonzero(upper)
    if not len(listed) or len(listed) > MANY_SHARE * seen:
        return None
    listed = listed[np.argsort(-best.mean[listed], kind="stable")]
    few = len(listed) < max(FEW_ROWS, FEW_SHARE * seen)
    return SuspiciousRows(
        tuple(listed.tolist()),
        tuple(best.mean[listed].tolist()),
        float(np.nanmedian(best.mean)),
        seen,
        best.contrast,
        "note" if labels is None or few else "watch",
    )


def _divided(losses: NDArray[Any]) -> _Division | None:
    """Rows by the mean of the square root of their loss: between the loss, which a few rows rule, and the probability,
    which does not tell bad from worse. Otsu's threshold: the two groups with the least variance in them."""
    values = np.maximum(losses.astype(np.float64), 0.0)
    values[~np.isfinite(values)] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows that were not seen have no mean
        scores, mean, chance = (np.nanmean(one, 0) for one in (np.sqrt(values), values, np.exp(-values)))
    seen = np.isfinite(scores)
    ordered = np.sort(scores[seen])
    n, variance = len(ordered), float(ordered.var()) if seen.any() else 0.0
    if n < LEAST_ROWS or variance < 1e-12:
        return None
    sums, count = np.cumsum(ordered), np.arange(1, n)
    between = count * (n - count) / n**2 * ((sums[-1] - sums[:-1]) / (n - count) - sums[:-1] / count) ** 2
    split = int(between.argmax()) + 1
    lower, upper = ordered[:split], ordered[split:]
    spread = max(1e-6, float(np.sqrt((lower.var() + upper.var()) / 2)))
    distance = float(upper.mean() - lower.mean())
    high = seen & (np.nan_to_num(scores) >= upper[0])
    apart = float(chance[seen & ~high].mean() - chance[high].mean()) if (seen & ~high).any() else 0.0
    listed = seen & (np.nan_to_num(scores) > lower.mean() + CUT * distance)
    return _Division(listed, mean, apart * distance / spread)


def _unlearned(upper: NDArray[np.bool_], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The rows of labels of which more than half are extreme: such a label is not learned yet, and no row is wrong."""
    every, extreme = np.bincount(labels), np.bincount(labels, weights=upper)
    hard: NDArray[np.bool_] = (extreme > 0.5 * every[: len(extreme)])[labels]
    return hard
