"""One metric of the same rows by two models: how far apart they are, and whether that is more than chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from tuneloop.base.language import t
from tuneloop.evaluation import intervals
from tuneloop.evaluation.corpus import SectionTexts, corpus_pair
from tuneloop.evaluation.intervals import CONFIDENCE, LEAST, Estimate
from tuneloop.evaluation.metrics import METRICS, Metric

SOURCE = "source/"
"""Section of a file's held-out rows, where there are several files: they are those of section "" once more."""
Separation = Literal["better", "worse", "not separable", "not defined"]


@dataclass(frozen=True, slots=True)
class RowScores:
    """One row measured by both models: its metrics by name, None where one is not defined for it."""

    id: str
    section: str = ""
    """Its section of the suite: "" for held-out rows, "general/<name>", "file/<name>", "task/<name>"."""
    before: Mapping[str, float | None] = field(default_factory=dict)
    after: Mapping[str, float | None] = field(default_factory=dict)
    weight: float = 1.0
    """What it counts in a mean of losses: its label tokens, or the weight of its class."""

    def __post_init__(self) -> None:
        for name in ("before", "after"):
            own = {key: _finite(number) for key, number in getattr(self, name).items()}
            object.__setattr__(self, name, own)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RowScores:
        return cls(
            content["id"], content.get("section", ""), content["before"], content["after"], content.get("weight", 1.0)
        )

    def as_dict(self) -> dict[str, Any]:
        sides = {"before": dict(self.before), "after": dict(self.after)}
        return {"id": self.id, "section": self.section, **sides, "weight": self.weight}


def _finite(number: float | None) -> float | None:
    return float(number) if number is not None and math.isfinite(number) else None


@dataclass(frozen=True, slots=True)
class Paired:
    """A metric (a name of METRICS) on one section of the suite, before and after, and the paired difference."""

    metric: str
    section: str
    before: Estimate
    after: Estimate
    difference: Estimate
    """after minus before, of the same rows."""
    separation: Separation
    p: float | None = None
    """Two-sided p-value of an exact test, where there is one."""

    @property
    def word(self) -> str:
        """How the sides stand to each other, in the reader's language."""
        return separation_word(self.separation, self.difference.rows)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Paired:
        sides = {key: Estimate.from_dict(content[key]) for key in ("before", "after", "difference")}
        return cls(content["metric"], content["section"], **sides, separation=content["separation"], p=content.get("p"))

    def as_dict(self) -> dict[str, Any]:
        sides = {key: getattr(self, key).as_dict() for key in ("before", "after", "difference")}
        return {"metric": self.metric, "section": self.section, **sides, "separation": self.separation, "p": self.p}


def separations() -> dict[Separation, str]:
    """A separation -> its word for the reader."""
    return {
        "better": t("better"),
        "worse": t("worse"),
        "not separable": t("not separable"),
        "not defined": t("not defined"),
    }


def separation_word(separation: Separation, rows: int) -> str:
    """A separation in the reader's language: on so few rows that none can be shown, it is they that are short.

    >>> separation_word("not separable", 12), separation_word("not separable", 5)
    ('not separable', 'too few rows')
    """
    return t("too few rows") if separation == "not separable" and too_few(rows) else separations()[separation]


def too_few(rows: int) -> str:
    """Why no difference of so few rows can be shown, and what to do; "" of enough rows, and of none.

    >>> too_few(6), too_few(0), too_few(5)[:52]
    ('', '', 'With 5 rows no difference can be told from chance, h')
    """
    if not 0 < rows < LEAST:
        return ""
    return t(
        "With {n} rows no difference can be told from chance, however large it is: that takes {least} rows at least. "
        "Raise prepare.validation or add rows.",
        n=rows,
        least=LEAST,
    )


def p_shown(p: float | None) -> str:
    """The p-value of an exact test for a reader; "" where there is none.

    >>> p_shown(0.0625), p_shown(0.0004), p_shown(1.0), p_shown(None)
    ('0.062', '< 0.001', '1', '')
    """
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def compare_rows(rows: Sequence[RowScores], texts: Mapping[str, SectionTexts] | None = None) -> list[Paired]:
    """Each metric of each section with its intervals, and whether the sides can be told apart.

    `texts` are the answers of a section, where its BLEU, chrF or macro F1 is wanted. A metric that no row of a section
    names is left out.
    """
    texts = texts or {}
    sections: dict[str, list[RowScores]] = {section: [] for section in texts}
    for row in rows:
        sections.setdefault(row.section, []).append(row)
    pairs = [_pair(name, section, own, texts.get(section)) for section, own in sections.items() for name in METRICS]
    known = {(pair.section, pair.metric): pair.separation for pair in pairs if pair is not None}
    return [
        replace(pair, separation=known.get((pair.section, METRICS[pair.metric].of_rows), pair.separation))
        for pair in pairs
        if pair is not None
    ]


def _pair(name: str, section: str, rows: Sequence[RowScores], texts: SectionTexts | None) -> Paired | None:
    metric = METRICS[name]
    if metric.interval == "corpus":
        wanted = texts is not None and (metric.needs == "labels") == _has(rows, "accuracy")
        return _judged(name, section, *corpus_pair(name, texts)) if texts is not None and wanted else None
    source = metric.of_rows or name
    if not metric.interval or not _has(rows, name):
        return None
    pairs = [
        (before, after, row.weight)
        for row in rows
        if (before := row.before.get(source)) is not None and (after := row.after.get(source)) is not None
    ]
    if not pairs:
        nothing = Estimate(note="not measured")
        return Paired(name, section, nothing, nothing, nothing, "not defined")
    return _judged(name, section, *PAIRED_BY[metric.interval](metric, *np.array(pairs, np.float64).T))


def _has(rows: Sequence[RowScores], metric: str) -> bool:
    return any(metric in row.before or metric in row.after for row in rows)


PairMeasured = tuple[Estimate, Estimate, Estimate, float | None]
"""Before, after, difference, and the p of an exact test."""


def _means(metric: Metric, before: Any, after: Any, weight: Any) -> PairMeasured:
    difference = intervals.mean_difference(before, after)
    return intervals.mean(before), intervals.mean(after), difference, intervals.sign_flip(after - before)


def _proportions(metric: Metric, before: Any, after: Any, weight: Any) -> PairMeasured:
    first, last = before > 0, after > 0
    old, new = (intervals.proportion(int(side.sum()), len(side)).scaled(metric.scale) for side in (first, last))
    difference = intervals.proportion_difference(first, last).scaled(metric.scale)
    return old, new, difference, intervals.mcnemar(first, last)


def _ratios(metric: Metric, before: Any, after: Any, weight: Any) -> PairMeasured:
    def of(share: Any) -> Any:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.exp(share) if metric.of_rows else share

    first, last = before * weight, after * weight
    old, new = (intervals.ratio(side, weight, of=of) for side in (first, last))
    return old, new, intervals.ratio_difference(first, last, weight, of=of), intervals.sign_flip(last - first)


PAIRED_BY: dict[str, Callable[..., PairMeasured]] = {
    "mean": _means,
    "proportion": _proportions,
    "ratio": _ratios,
}
"""How a metric of rows gets its interval -> the function that gives it."""


def _judged(
    name: str, section: str, before: Estimate, after: Estimate, difference: Estimate, p: float | None
) -> Paired:
    metric = METRICS[name]
    # What the table shows as no change is none, however sure; and so is what another seed changes.
    least = max(0.5 * 10**-metric.digits, metric.slack * abs(before.estimate or 0.0))
    separation = separate(difference, p, metric.higher_is_better, least)
    if not difference.note and metric.higher_is_better is None:
        difference = replace(difference, note="no direction")
    elif not difference.note and difference.estimate and abs(difference.estimate) < least:
        difference = replace(difference, note="too small")
    return Paired(name, section, before, after, difference, separation, p)


def separate(difference: Estimate, p: float | None, higher_is_better: bool | None, least: float = 0.0) -> Separation:
    """Better or worse only where a difference of `least` or more has an interval without 0 and the exact test agrees.

    >>> separate(Estimate(-0.5, -0.7, -0.3, 60, "bca"), 0.001, False)
    'better'
    >>> separate(Estimate(-0.5, -0.7, -0.3, 3, "bca"), 0.25, False), separate(Estimate(), None, True)
    ('not separable', 'not defined')
    """
    if difference.estimate is None or higher_is_better is None:
        return "not defined"
    low, high = (difference.estimate if bound is None else bound for bound in (difference.low, difference.high))
    if abs(difference.estimate) < least or low <= 0 <= high or p is None or p >= 1 - CONFIDENCE:
        return "not separable"
    return "better" if (difference.estimate > 0) == higher_is_better else "worse"
