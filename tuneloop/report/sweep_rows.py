"""The rows of the table of a run's checkpoints."""

from __future__ import annotations

from tuneloop.base.language import t
from tuneloop.evaluation.checkpoints import Sweep
from tuneloop.evaluation.intervals import notes
from tuneloop.report import gains


def rows(swept: Sweep) -> list[tuple[str, ...]]:
    """(step, loss, interval, the last one's loss less this one's with its interval, how the last one stands to it)."""
    out: list[tuple[str, ...]] = []
    for place, one in enumerate(swept.checkpoints):
        loss = one.loss.estimate
        shown = notes().get(one.loss.note, "–") if loss is None else gains.shown(loss, 4)
        change, word = "", ""
        if one.against_last is not None:
            difference = one.against_last.difference
            change = f"{gains.signed(difference.estimate, 4)} {gains.interval(difference, 4)}".strip()
            word = one.against_last.word
        step = f"{one.step:,}{' ★' if place == swept.best else ''}"
        out.append((step, shown, gains.interval(one.loss, 4), change, word or t("the last")))
    return out
