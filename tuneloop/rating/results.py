"""What ratings say: which model is preferred, by how much, how far raters agree, and how sure that is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tuneloop.base.language import t
from tuneloop.evaluation.intervals import Estimate, mean, mean_difference, proportion
from tuneloop.rating.agreement import Level, PairedChoice, Strength, alpha, bradley_terry
from tuneloop.rating.rating import MODELS_CHOSEN, SCALES, Rating
from tuneloop.rating.study import Study

Choices = Sequence[tuple[str, Rating]]
"""(row, rating): what people chose, in this study and others."""


@dataclass(frozen=True, slots=True)
class Means:
    """A scale's mean of each model, and the mean of the paired differences, second minus first."""

    first: Estimate
    second: Estimate
    difference: Estimate


@dataclass(frozen=True, slots=True)
class RaterFigures:
    """One rater: slots rated, how often the same pair shown again got the same choice, and gold rows chosen right."""

    rater: str
    ratings: int
    left: int
    consistency: Estimate
    gold: Estimate


@dataclass(frozen=True, slots=True)
class RatingResults:
    """The ratings of one study. Repeats and gold rows count for the raters' figures alone."""

    models: tuple[str, str]
    rows: int
    """Pairs that somebody rated."""
    shared: int
    """Of these, by two raters or more."""
    ratings: int
    left: int
    """Slots that are still to be rated."""
    more: int
    """Ratings of repeats and gold rows, which are not among `ratings`."""
    choices: Mapping[str, int]
    """One of MODELS_CHOSEN -> rows that the raters decided so: by more votes than any other choice got."""
    win_rate: Estimate
    """Of the second model, among the rows that were decided for one of the two."""
    scores: Mapping[str, Means]
    safety: tuple[Estimate, Estimate]
    """The share of rows whose answer every rater let pass."""
    alpha: Mapping[str, Estimate]
    strengths: Sequence[Strength]
    """By Bradley and Terry, of all models of the workspace that ratings connect with the first."""
    raters: Sequence[RaterFigures]

    def as_dict(self) -> dict[str, Any]:
        """What --json prints."""
        return asdict(self)


def results(study: Study, elsewhere: Choices = ()) -> RatingResults:
    """The figures of a study. `elsewhere` are choices of other studies, which Bradley-Terry takes in."""
    every = [rating for rating in study.ratings() if rating.choice and rating.pair in study.pairs]
    rows = [rating for rating in every if rating.kind == "row" and not study.pairs[rating.pair].right]
    by_row: dict[str, list[Rating]] = defaultdict(list)
    for rating in rows:
        by_row[rating.pair].append(rating)
    decided = Counter(decision([r.chosen(study.models) for r in of_row]) for of_row in by_row.values())
    wins, losses = decided["second"], decided["first"]
    left = study.left()
    return RatingResults(
        models=study.models,
        rows=len(by_row),
        shared=sum(len({r.rater for r in of_row}) > 1 for of_row in by_row.values()),
        ratings=len(rows),
        left=sum(left.values()),
        more=len(every) - len(rows),
        choices={name: decided[name] for name in MODELS_CHOSEN},
        win_rate=_win_rate(wins, wins + losses, len(by_row)),
        scores={scale: _means(by_row, study.models, n) for n, scale in enumerate(SCALES)},
        safety=(_safety(by_row, study.models[0]), _safety(by_row, study.models[1])),
        alpha=_alphas(rows, study.models),
        strengths=bradley_terry(_connected(rows, elsewhere, study.models[0]), study.models[0]) if rows else [],
        raters=[_figures(study, name, every, left.get(name, 0)) for name in _raters(study, every)],
    )


def _raters(study: Study, ratings: Iterable[Rating]) -> list[str]:
    return list(dict.fromkeys([*study.plans, *(rating.rater for rating in ratings)]))


def decision(votes: Sequence[str]) -> str:
    """What most raters chose; a tie where two choices have as many votes.

    >>> decision(["first", "first", "tie"]), decision(["first", "second"]), decision(["both_bad"])
    ('first', 'tie', 'both_bad')
    """
    ranked = Counter(votes).most_common()
    return ranked[0][0] if len(ranked) == 1 or ranked[0][1] > ranked[1][1] else "tie"


def _win_rate(wins: int, decided: int, rows: int) -> Estimate:
    if rows and not decided:
        return Estimate(None, None, None, 0, "Wilson", t("not defined because no row was decided for one of the two"))
    return proportion(wins, decided)


def _means(by_row: Mapping[str, list[Rating]], models: tuple[str, str], scale: int) -> Means:
    """Row by row the mean over raters; only rows where both answers have a score, so that all is paired."""
    first, second = [], []
    for ratings in by_row.values():
        scores = [[r.of(m).scores[scale] for r in ratings if r.of(m).scores[scale] is not None] for m in models]
        if all(scores):
            first.append(_average(scores[0]))
            second.append(_average(scores[1]))
    return Means(mean(first), mean(second), mean_difference(first, second))


def _average(scores: Sequence[int | None]) -> float:
    return sum(score or 0 for score in scores) / len(scores)


def _safety(by_row: Mapping[str, list[Rating]], model: str) -> Estimate:
    votes = [[r.of(model).safe for r in ratings if r.of(model).safe is not None] for ratings in by_row.values()]
    voted = [row for row in votes if row]
    return proportion(sum(all(row) for row in voted), len(voted))


def _alphas(rows: Sequence[Rating], models: tuple[str, str]) -> dict[str, Estimate]:
    """Krippendorff's alpha of the choice, of each scale and of safety; a unit of the last two is one answer."""

    def of_answers(field: Callable[[Rating, str], Any], level: Level) -> Estimate:
        labels = [(r.rater, f"{r.pair} {m}", field(r, m)) for r in rows for m in models]
        return alpha([label for label in labels if label[2] is not None], level)

    out = {"choice": alpha([(r.rater, r.pair, r.chosen(models)) for r in rows], "nominal")}
    for n, scale in enumerate(SCALES):
        out[scale] = of_answers(lambda r, m, n=n: r.of(m).scores[n], "ordinal")  # type: ignore[misc]
    return {**out, "safety": of_answers(lambda r, m: r.of(m).safe, "nominal")}


def _connected(rows: Sequence[Rating], elsewhere: Choices, start: str) -> list[PairedChoice]:
    """The choices of this study, and those elsewhere among models that choices connect with `start`."""
    outcome = {"A": 1.0, "B": 0.0}
    every = [("here " + r.pair, r) for r in rows] + list(elsewhere)
    choices = [PairedChoice(row, r.model_a, r.model_b, outcome.get(r.choice, 0.5)) for row, r in every]
    known, before = {start}, 0
    while len(known) > before:
        before = len(known)
        known |= {name for c in choices if {c.first, c.second} & known for name in (c.first, c.second)}
    return [c for c in choices if c.first in known]


def _figures(study: Study, rater: str, ratings: Sequence[Rating], left: int) -> RaterFigures:
    mine = [rating for rating in ratings if rating.rater == rater]
    chosen = {(r.pair, r.kind): r.chosen(study.models) for r in mine}
    again = [
        (chosen[pair, "row"], choice)
        for (pair, kind), choice in chosen.items()
        if kind == "repeat" and (pair, "row") in chosen
    ]
    gold = [(study.pairs[pair].right, choice) for (pair, _), choice in chosen.items() if study.pairs[pair].right]
    return RaterFigures(
        rater,
        len(mine),
        left,
        proportion(sum(one == other for one, other in again), len(again)),
        proportion(sum(right == choice for right, choice in gold), len(gold)),
    )
