"""Several runs on the rows they share: each metric of each run with its interval, and which of them can be told apart.

Nothing is measured here: the runs' evaluations hold what each row scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tuneloop.evaluation.corpus import SectionTexts
from tuneloop.evaluation.evaluation import Answer, Evaluation
from tuneloop.evaluation.form import visible
from tuneloop.evaluation.intervals import Estimate
from tuneloop.evaluation.metrics import METRICS
from tuneloop.evaluation.paired import SOURCE, Paired, RowScores, compare_rows

OF_TOKENS = ("loss", "perplexity")
"""Metrics a label token: of rows that two models cut into other tokens they are not of the same thing."""
PRINCIPAL = ("accuracy", "preferred", "loss")
"""The first of these that two runs share says which of them is better."""


@dataclass(frozen=True, slots=True)
class RunFigures:
    """One metric of one section for several runs: each run's estimate, and each against the first (None for itself)."""

    metric: str
    section: str
    estimates: tuple[Estimate, ...]
    against_first: tuple[Paired | None, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "section": self.section,
            "estimates": [one.as_dict() for one in self.estimates],
            "against_first": [None if one is None else one.as_dict() for one in self.against_first],
        }


@dataclass(frozen=True, slots=True)
class RunPair:
    """Two runs, by their place in the row, and how far the second is from the first."""

    left: int
    right: int
    pair: Paired

    def as_dict(self) -> dict[str, Any]:
        return {"left": self.left, "right": self.right, **self.pair.as_dict()}


def shared_rows(left: Evaluation, right: Evaluation) -> list[RowScores]:
    """The rows that both runs were measured on after training: `before` the left one's figures, `after` the right's.

    >>> one = Evaluation(row_scores=(RowScores("a", "", {}, {"loss": 2.0}, 3.0), RowScores("b", "", {}, {"loss": 1.0})))
    >>> two = Evaluation(row_scores=(RowScores("a", "", {}, {"loss": 1.5}, 3.0),))
    >>> [(row.id, dict(row.before), dict(row.after)) for row in shared_rows(one, two)]
    [('a', {'loss': 2.0}, {'loss': 1.5})]
    """
    theirs = {(row.section, row.id): row for row in right.row_scores}
    pairs = [(mine, theirs[key]) for mine in left.row_scores if (key := (mine.section, mine.id)) in theirs]
    odd = {mine.section for mine, other in pairs if mine.weight != other.weight}
    out = []
    for mine, other in pairs:
        first, last = (_without(side.after, mine.section in odd) for side in (mine, other))
        out.append(RowScores(mine.id, mine.section, first, last, mine.weight))
    return out


def _without(figures: Mapping[str, float | None], tokens_differ: bool) -> dict[str, float | None]:
    return {name: figure for name, figure in figures.items() if not (tokens_differ and name in OF_TOKENS)}


def paired_runs(left: Evaluation, right: Evaluation) -> list[Paired]:
    """Each metric of two runs after training on the rows they share; `before` is the left run, `after` the right."""
    return compare_rows(shared_rows(left, right), _texts(left, right))


def _texts(left: Evaluation, right: Evaluation) -> dict[str, SectionTexts]:
    """The answers of both runs to the rows they share, by section."""
    theirs = {_key(answer): answer for answer in (*right.answers, *right.section_answers) if answer.id}
    sections: dict[str, list[tuple[Answer, Answer]]] = {}
    for mine in (*left.answers, *left.section_answers):
        if mine.id and _key(mine) in theirs and mine.reference.strip():
            sections.setdefault(mine.section, []).append((mine, theirs[_key(mine)]))
    return {
        section: SectionTexts(
            [mine.reference for mine, _ in pairs],
            [visible(mine.after) for mine, _ in pairs],
            [visible(other.after) for _, other in pairs],
        )
        for section, pairs in sections.items()
    }


def _key(answer: Answer) -> tuple[str, str]:
    return answer.section, answer.id


def run_figures(evaluations: Sequence[Evaluation]) -> list[RunFigures]:
    """Each metric and section of the suite that at least one run was measured on, in the order of METRICS.

    Raises ValueError for no evaluation.
    """
    if not evaluations:
        raise ValueError("no runs to compare")
    own = [{(p.section, p.metric): p.after for p in one.paired} | _unpaired(one) for one in evaluations]
    against = [{(p.section, p.metric): p for p in paired_runs(evaluations[0], one)} for one in evaluations[1:]]
    order = list(METRICS)
    every = dict.fromkeys(key for side in own for key in side if not key[0].startswith(SOURCE))
    keys = sorted(every, key=lambda k: (k[0], order.index(k[1])))
    return [
        RunFigures(
            key[1],
            key[0],
            tuple(side.get(key, Estimate(note="not measured")) for side in own),
            (None, *(side.get(key) for side in against)),
        )
        for key in keys
    ]


def _unpaired(evaluation: Evaluation) -> dict[tuple[str, str], Estimate]:
    """Metrics of the held-out rows that have no interval, as evaluations of earlier versions have none."""
    there = {p.metric for p in evaluation.paired if not p.section}
    after = evaluation.after
    return {
        ("", name): Estimate(figure, rows=after.rows or after.texts or 0)
        for name, figure in after.metrics.items()
        if figure is not None and name not in there
    }


def run_pairs(evaluations: Sequence[Evaluation]) -> list[RunPair]:
    """Any two of the runs by the principal metric that they share on their held-out rows."""
    pairs = []
    for left, right in combinations(range(len(evaluations)), 2):
        every = {p.metric: p for p in paired_runs(evaluations[left], evaluations[right]) if not p.section}
        principal = next((every[name] for name in PRINCIPAL if name in every), None)
        if principal is not None:
            pairs.append(RunPair(left, right, principal))
    return pairs
