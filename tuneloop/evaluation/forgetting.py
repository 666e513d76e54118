"""Whether training made the model worse at what it knew: the paired loss on the general set.

A tuned model writes in another manner, so the loss of a short reference rises by a little without anything being
forgotten. What counts as forgotten is more than that: see MARGIN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from tuneloop.base.language import t
from tuneloop.evaluation import intervals
from tuneloop.evaluation.general_set import VERSION
from tuneloop.evaluation.intervals import Estimate
from tuneloop.evaluation.paired import RowScores

Forgot = Literal["forgot", "within margin", "not separable", "improved", "not defined"]
MARGIN = 0.25
"""Nats a token that the loss of the general set must have risen by, with the whole interval of the difference."""
LEAST = 20
"""Rows below which nothing is concluded."""


@dataclass(frozen=True, slots=True)
class Forgetting:
    """What a run did to the general set: its mean loss before and after, and the paired difference."""

    verdict: Forgot
    before: float | None
    after: float | None
    difference: Estimate
    margin: float = MARGIN
    version: str = VERSION
    """Of the general set: figures of two versions are not compared."""
    sections: Mapping[str, Estimate] | None = None
    """Of each section the difference."""

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Forgetting:
        known = {f.name: content[f.name] for f in fields(cls) if f.name in content}
        sections = {name: Estimate.from_dict(one) for name, one in (content.get("sections") or {}).items()}
        return cls(**{**known, "difference": Estimate.from_dict(content["difference"]), "sections": sections})

    def as_dict(self) -> dict[str, Any]:
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        sections = {name: one.as_dict() for name, one in (self.sections or {}).items()}
        return {**own, "difference": self.difference.as_dict(), "sections": sections}


def forgetting(rows: Sequence[RowScores]) -> Forgetting | None:
    """What was forgotten, from the losses of the general set's rows; None where it was not measured."""
    general = [row for row in rows if row.section.startswith("general/") and "loss" in row.before]
    if not general:
        return None
    pairs = [
        (row.section, old, new)
        for row in general
        if (old := row.before["loss"]) is not None and (new := row.after.get("loss")) is not None
    ]
    if len(pairs) < LEAST:
        return Forgetting("not defined", None, None, Estimate(rows=len(pairs), note="not measured"))
    before, after = ([pair[k] for pair in pairs] for k in (1, 2))
    sections = {
        name: intervals.mean_difference([b for s, b, _ in pairs if s == name], [a for s, _, a in pairs if s == name])
        for name in dict.fromkeys(section for section, _, _ in pairs)
    }
    difference = intervals.mean_difference(before, after)
    n = len(pairs)
    return Forgetting(judged(difference), sum(before) / n, sum(after) / n, difference, sections=sections)


def judged(difference: Estimate) -> Forgot:
    """What a paired difference of losses says.

    >>> [judged(Estimate(d, low, high, 120)) for d, low, high in ((0.6, 0.5, 0.7), (0.1, 0.05, 0.15), (0.0, -0.1, 0.1))]
    ['forgot', 'within margin', 'not separable']
    """
    if difference.estimate is None:
        return "not defined"
    low, high = (difference.estimate if bound is None else bound for bound in (difference.low, difference.high))
    if low > MARGIN:
        return "forgot"
    if low > 0:
        return "within margin"
    return "improved" if high < 0 else "not separable"


def sentence(forgotten: Forgetting) -> str:
    """The verdict for a reader, with its figures.

    >>> sentence(Forgetting("within margin", 2.0, 2.1, Estimate(0.1, 0.05, 0.15, 96)))[:68]
    'The loss of the general set rose by no more than a change of manner '
    >>> sentence(Forgetting("within margin", 2.0, 2.1, Estimate(0.1, 0.05, 0.15, 96)))[68:]
    'does: 2.00 → 2.10 (+0.10, 95 % interval +0.05 to +0.15).'
    """
    change = forgotten.difference
    if forgotten.before is None or forgotten.after is None or change.estimate is None:
        return t("Whether something was forgotten is not known: too few rows of the general set fit this model.")
    low, high = (f"{change.estimate if bound is None else bound:+.2f}" for bound in (change.low, change.high))
    figures = t(
        "{before} → {after} ({change}, 95 % interval {low} to {high})",
        before=f"{forgotten.before:.2f}",
        after=f"{forgotten.after:.2f}",
        change=f"{change.estimate:+.2f}",
        low=low,
        high=high,
    )
    if forgotten.verdict == "forgot":
        return t(
            "The model forgot: the loss of the general set rose, {figures}. Train fewer epochs, at a lower rate, or "
            "with general dialogues among the rows.",
            figures=figures,
        )
    if forgotten.verdict == "within margin":
        return t(
            "The loss of the general set rose by no more than a change of manner does: {figures}.", figures=figures
        )
    if forgotten.verdict == "improved":
        return t("Nothing was forgotten: the loss of the general set fell, {figures}.", figures=figures)
    return t("The loss of the general set before and after is not separable: {figures}.", figures=figures)
