"""What the held-out loss tells: that it rises (overfitting), or that it has been flat for long (a plateau)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from tuneloop.monitor.detection import Detection
from tuneloop.monitor.history import History, Measurement, RowLosses
from tuneloop.recipe.watch import RulesPart

ENOUGH = 20
"""Held-out rows from which on an interval can be trusted; below, nothing is more than a note."""
SURE = 3.0
"""Standard errors of a difference that is more than chance, though looked for again and again (99.7%)."""
INTERVAL = 1.96
"""Standard errors on each side of a 95% interval."""
RISING, WORSE = 2, 4
"""Measurements in a row above the best that are to be watched, or bad."""
FLAT, FLAT_SHARE = 5, 0.3
"""A plateau: so many measurements without a gain, over so large a share of the run so far."""
NARROW = 0.05
"""A gain of this share of all that was gained would have shown: half the interval is not wider."""


def overfit(history: History, rules: RulesPart) -> Detection | None:
    """The held-out loss is above its best by more than its interval, repeatedly, while the training loss has fallen."""
    rise = _rise(history)
    if rise is None or not rise.learned:
        return None
    error = _difference_error(history, rise.best, rise.last)
    facts = {"loss": rise.last.loss, "best": rise.best.loss, "best_step": rise.best.step, "interval": INTERVAL * error}
    facts["rows"] = rise.last.rows or 0
    if (rise.last.rows or 0) < ENOUGH:
        return Detection("note", rise.since, facts)
    return Detection("bad" if rise.run >= WORSE else "watch", rise.since, facts)


def diverging(history: History) -> Detection | None:
    """The same while the training loss has not fallen: the run loses what it had, on all rows."""
    rise = _rise(history)
    if rise is None or rise.learned or (rise.last.rows or 0) < ENOUGH:
        return None
    low, loss = rise.best.loss, rise.last.loss
    share = (loss - low) / max(abs(low), 1e-12)
    return Detection(
        "watch", rise.since, {"loss": loss, "low": low, "low_step": rise.best.step, "share": share, "held": True}
    )


class Rise(NamedTuple):
    """The last `run` measurements are all above the best one by more than chance, from step `since` on. `learned`:
    whether the training loss is lower than at the best one."""

    best: Measurement
    last: Measurement
    run: int
    since: int
    learned: bool


def _rise(history: History) -> Rise | None:
    """None where fewer than RISING measurements in a row are above the best one."""
    best, measurements = history.best, list(history.measurements)
    after = [one for one in measurements if best is not None and one.step > best.step]
    if best is None or not after or not all(math.isfinite(one.loss) for one in after):
        return None
    rising = [one for one in after if one.loss > best.loss + SURE * _difference_error(history, best, one)]
    run = _trailing(after, rising)
    return None if run < RISING else Rise(best, after[-1], run, after[-run].step, after[-1].level < best.level)


def flat(history: History) -> Detection | None:
    """No measurement for a good part of the run is better than the best before by more than chance, and none worse."""
    measurements = list(history.measurements)
    if len(measurements) <= FLAT:
        return None
    start, last = measurements[-FLAT - 1], measurements[-1]
    if last.step - start.step < FLAT_SHARE * last.step or (last.rows or 0) < ENOUGH:
        return None
    gained = measurements[0].loss - min(one.loss for one in measurements)
    errors = [_difference_error(history, start, one) for one in measurements[-FLAT:]]
    if not all(math.isfinite(one) for one in errors) or max(errors) * INTERVAL > NARROW * gained:
        return None
    if any(abs(one.loss - start.loss) > SURE * e for one, e in zip(measurements[-FLAT:], errors, strict=True)):
        return None
    return Detection("watch", start.step, {"loss": last.loss, "steps": last.step - start.step})


def _trailing(after: Sequence[Measurement], rising: Sequence[Measurement]) -> int:
    """How many of the last measurements rise without one between them that does not."""
    n = 0
    while n < len(after) and after[-1 - n] in rising:
        n += 1
    return n


def _difference_error(history: History, first: Measurement, second: Measurement) -> float:
    """Standard error of the difference of two measurements: of the paired rows where both are there, else as if they
    were of different rows, which is never too small. Infinite where neither is known."""
    before, after = history.rows_after(first.step), history.rows_after(second.step)
    if before is not None and after is not None:
        error = paired_error(before, after)
        if math.isfinite(error):
            return error
    if first.error is None or second.error is None:
        return math.inf
    return math.hypot(first.error, second.error)


def paired_error(before: RowLosses, after: RowLosses) -> float:
    """Standard error of the difference of two weighted means over the same rows; NaN where they are not, or below 2.

    >>> paired_error(RowLosses(1, [1.0, 2.0, 3.0], [1, 1, 1]), RowLosses(2, [2.0, 3.0, 4.0], [1, 1, 1]))
    0.0
    """
    weights, n = before.weights, len(before.losses)
    if n < 2 or len(after.losses) != n or list(weights) != list(after.weights) or not sum(weights) > 0:
        return math.nan
    differences = [b - a for a, b in zip(before.losses, after.losses, strict=True)]
    total = sum(weights)
    mean = sum(w * d for w, d in zip(weights, differences, strict=True)) / total
    squares = sum((w * (d - mean)) ** 2 for w, d in zip(weights, differences, strict=True))
    return math.sqrt(squares * n / (n - 1)) / total
