"""Metrics of all rows together, which are no mean of the rows' own: BLEU, chrF and macro F1, with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.evaluation import overlap
from tuneloop.evaluation.intervals import CONFIDENCE, FEW, Estimate, Floats, bootstrapped, swap_test

RESAMPLES = 1000
"""sacrebleu's own number."""


@dataclass(frozen=True, slots=True)
class SectionTexts:
    """What both models wrote to the rows of a section, and the references; of a classifier the labels.

    Raises ValueError for lists of unequal length.
    """

    references: Sequence[str] = ()
    before: Sequence[str] = ()
    after: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not len(self.references) == len(self.before) == len(self.after):
            raise ValueError(f"{len(self.references)} references, {len(self.before)} and {len(self.after)} answers")


CorpusPair = tuple[Estimate, Estimate, Estimate, float | None]
"""A metric before and after, its paired difference, and the p of the paired permutation test."""


def corpus_pair(metric: str, texts: SectionTexts) -> CorpusPair:
    """A metric of which `interval` is "corpus", on the texts of a section.

    >>> before, after, difference, p = corpus_pair("bleu", SectionTexts(["a b c d"] * 3, [""] * 3, ["a b c d"] * 3))
    >>> before.estimate, round(after.estimate, 6), difference.note, p
    (0.0, 100.0, 'few rows', 0.25)
    """
    if not texts.references:
        nothing = Estimate(note="no rows")
        return nothing, nothing, nothing, None
    return CORPORA[metric](texts)


def _bleu(texts: SectionTexts) -> CorpusPair:
    return _by_counts(texts, overlap.bleu_counts, overlap.bleu_scorer())


def _chrf(texts: SectionTexts) -> CorpusPair:
    return _by_counts(texts, overlap.chrf_counts, overlap.chrf_scorer())


class _BothSides:
    """Scores the summed counts of both sides of a resample: what sacrebleu's bootstrap asks of a metric."""

    def __init__(self, scorer: Any) -> None:
        self.scorer = scorer

    def score(self, counts: NDArray[Any]) -> float:
        return float(self.scorer._compute_score_from_stats(counts.tolist()).score)

    def _compute_score_from_stats(self, counts: NDArray[Any]) -> tuple[float, float]:
        middle = len(counts) // 2
        return self.score(counts[:middle]), self.score(counts[middle:])


def _by_counts(texts: SectionTexts, counts: Callable[[str, str], tuple[float, ...]], scorer: Any) -> CorpusPair:
    """sacrebleu's paired bootstrap: the rows' counts of n-grams are resampled, the same rows on both sides.

    Source: Koehn 2004, "Statistical significance tests for machine translation evaluation".
    """
    before, after = (
        np.array([counts(*pair) for pair in zip(side, texts.references, strict=True)], np.float64)
        for side in (texts.before, texts.after)
    )
    n, sides = len(before), _BothSides(scorer)
    figures = np.array([sides.score(before.sum(0)), sides.score(after.sum(0))])
    if n == 1:
        single = [Estimate(f, rows=1, note="one row") for f in (*figures, figures[1] - figures[0])]
        return single[0], single[1], single[2], None
    resample = import_module("sacrebleu.significance")._bootstrap_resample
    drawn = np.array(resample(np.concatenate([before, after], 1), sides, RESAMPLES)[1])

    def estimate(figure: float, draws: Floats) -> Estimate:
        # The bounds of which sacrebleu shows half the distance; these two also tell where they lie.
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(draws, (tail, 1 - tail))
        return Estimate(figure, low, high, n, "bootstrap", "few rows" if n < FEW else "")

    pooled = np.concatenate([before, after])

    def change(last: NDArray[np.int64], first: NDArray[np.int64]) -> float:
        return sides.score(pooled[last].sum(0)) - sides.score(pooled[first].sum(0))

    places = np.arange(2 * n).reshape(2, n)
    p = swap_test(change, places[1], places[0]) if (before != after).any() else 1.0
    old, new = (estimate(float(figures[k]), drawn[:, k]) for k in (0, 1))
    return old, new, estimate(float(figures[1] - figures[0]), drawn[:, 1] - drawn[:, 0]), p


def _macro_f1(texts: SectionTexts) -> CorpusPair:
    """Rows are resampled with their labels and both answers."""
    names = {name: k for k, name in enumerate(sorted({*texts.references, *texts.before, *texts.after}))}
    wanted, before, after = (
        np.array([names[name] for name in side], np.float64) for side in (texts.references, texts.before, texts.after)
    )

    def f1(wanted: Floats, answers: Floats, axis: int = -1) -> Floats:
        return _class_f1(wanted, answers, len(names))

    def gain(wanted: Floats, before: Floats, after: Floats, axis: int = -1) -> Floats:
        return f1(wanted, after) - f1(wanted, before)

    sides = [bootstrapped(f1, wanted, answers) for answers in (before, after)]
    p = swap_test(lambda last, first: float(gain(wanted, first, last)), after, before)
    return sides[0], sides[1], bootstrapped(gain, wanted, before, after), p if (before != after).any() else 1.0


def _class_f1(wanted: Floats, answers: Floats, classes: int) -> Floats:
    """Macro F1 of each resample, [..., rows] -> [...]: the mean over the classes that occur in it."""
    shape, n = wanted.shape[:-1], wanted.shape[-1]
    labels, called = wanted.reshape(-1, n).astype(np.int64), answers.reshape(-1, n).astype(np.int64)
    offset = np.arange(len(labels))[:, None] * classes

    def count(of: NDArray[np.int64], weights: NDArray[Any] | None = None) -> NDArray[Any]:
        counts: NDArray[Any] = np.bincount((of + offset).ravel(), weights, len(of) * classes).reshape(-1, classes)
        return counts

    right = count(labels, (labels == called).ravel().astype(np.float64))
    total = count(labels) + count(called)
    f1 = np.divide(2 * right, total, out=np.zeros(total.shape), where=total > 0)
    mean: Floats = (f1.sum(1) / (total > 0).sum(1)).reshape(shape)
    return mean


CORPORA: dict[str, Callable[[SectionTexts], CorpusPair]] = {"macro_f1": _macro_f1, "bleu": _bleu, "chrf": _chrf}
"""The metrics of which `interval` is "corpus"."""
