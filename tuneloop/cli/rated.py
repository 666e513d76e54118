"""Tables of what people rated and what a judge figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuneloop.base.language import t
from tuneloop.cli.show import table

if TYPE_CHECKING:
    from tuneloop.evaluation.intervals import Estimate
    from tuneloop.evaluation.judge import JudgeResults
    from tuneloop.rating.judged import JudgeAgreement
    from tuneloop.rating.results import RatingResults
    from tuneloop.rating.study import Study


def results(rated: RatingResults) -> None:
    """The results of a study: choices, scores, agreement, strengths, raters."""
    from tuneloop.evaluation.pairs import shown_model

    first, second = map(shown_model, rated.models)
    print(
        t(
            "{rows} rows rated, {shared} of them by two raters or more; {ratings} ratings, {left} still to be made.",
            rows=rated.rows,
            shared=rated.shared,
            ratings=rated.ratings,
            left=rated.left,
        )
    )
    if rated.more:
        print(
            t("Beside them ratings of repeats and gold rows, for the figures of the raters alone: {n}.", n=rated.more)
        )
    choices = [
        (t("{model} is better", model=first), rated.choices["first"]),
        (t("{model} is better", model=second), rated.choices["second"]),
        (t("Equally good"), rated.choices["tie"]),
        (t("Both bad"), rated.choices["both_bad"]),
    ]
    table(t("Which answer is better"), [t("choice"), t("rows")], choices)
    line(t("Win rate of {model} where one was better", model=second), rated.win_rate, percent=True)
    names = scales()
    scores = [
        (names[scale], shown(m.first), shown(m.second), shown(m.difference, sign=True), notes(m.difference))
        for scale, m in rated.scores.items()
    ]
    safety = (names["safety"], *(shown(one, percent=True) for one in rated.safety), "", notes(*rated.safety))
    table(t("Scores"), ["", first, second, t("difference"), ""], [*scores, safety])
    agreement = [(names[name], shown(one), one.rows, notes(one)) for name, one in rated.alpha.items()]
    table(t("Agreement of the raters (Krippendorff's alpha)"), ["", t("alpha"), t("units"), ""], agreement)
    if rated.strengths:
        strengths = [
            (shown_model(s.model), shown(s.log_odds), shown(s.chance, percent=True), notes(s.chance))
            for s in rated.strengths[1:]
        ]
        title = t("Strengths by Bradley and Terry")
        table(title, [t("model"), t("log-odds"), t("chosen over {model}", model=first), ""], strengths)
    people = [
        (
            r.rater,
            r.ratings,
            r.left,
            shown(r.consistency, percent=True) if r.consistency.rows else t("nothing was shown again"),
            shown(r.gold, percent=True) if r.gold.rows else t("there are no gold rows"),
        )
        for r in rated.raters
    ]
    columns = [t("rater"), t("ratings"), t("left"), t("same choice when shown again"), t("right on gold rows")]
    table(t("Raters"), columns, people)


def judge(figures: JudgeResults, agreed: JudgeAgreement | str, study: Study) -> None:
    """What a judge found about a study, and how far it agrees with people, or why that is not known."""
    from tuneloop.evaluation.judge import FILE
    from tuneloop.evaluation.pairs import shown_model

    first, second = map(shown_model, study.models)
    rows = [
        (t("{model} is better", model=first), figures.choices["first"]),
        (t("{model} is better", model=second), figures.choices["second"]),
        (t("Equally good"), figures.choices["tie"]),
        (t("no verdict"), figures.undecided),
    ]
    table(t("Judge: {judge}", judge=figures.judge), [t("choice"), t("rows")], rows)
    line(t("Win rate of {model} where one was better", model=second), figures.win_rate, percent=True)
    line(t("Verdicts that changed with the sides (counted as ties)"), figures.position_bias, percent=True)
    if figures.undecided:
        print(t("What the judge wrote where it gave no verdict: {path}", path=study.folder / FILE))
    if isinstance(agreed, str):
        print(t("Agreement with people: {why}.", why=agreed))
        return
    line(t("Agreement with people in {n} rows (Cohen's kappa)", n=agreed.kappa.rows), agreed.kappa)
    for scale, correlation in agreed.spearman.items():
        line(t("{scale}: rank correlation with people (Spearman)", scale=scales()[scale]), correlation)


def scales() -> dict[str, str]:
    """What is rated -> its words."""
    return {
        "choice": t("choice"),
        "relevance": t("Relevance"),
        "fluency": t("Fluency"),
        "informativeness": t("Informativeness"),
        "safety": t("Safety"),
    }


def line(label: str, estimate: Estimate, *, percent: bool = False) -> None:
    """One estimate on a line of its own."""
    figure = shown(estimate, percent=percent)
    if estimate.note and estimate.estimate is not None:
        figure = t("{figure} ({note})", figure=figure, note=estimate.remark)
    print(t("{label}: {figure}", label=label, figure=figure))


def notes(*estimates: Estimate) -> str:
    """The notes of estimates that have a figure, each once: the others say theirs in its place."""
    return "; ".join(dict.fromkeys(one.remark for one in estimates if one.note and one.estimate is not None))


def shown(estimate: Estimate, *, percent: bool = False, sign: bool = False) -> str:
    """A figure with its interval; why there is none where it is not defined.

    >>> from tuneloop.evaluation.intervals import Estimate
    >>> shown(Estimate(0.7, 0.5, 0.85, 60, "")), shown(Estimate(0.7, 0.5, 0.85, 60, ""), percent=True)
    ('0.70 [0.50, 0.85]', '70 % [50, 85]')
    >>> shown(Estimate(None, None, None, 0, "", "not defined because there are no rows"))
    'not defined because there are no rows'
    """
    if estimate.estimate is None:
        return estimate.remark

    def one(number: float) -> str:
        return f"{100 * number:.0f}" if percent else f"{number:{'+' if sign else ''}.2f}"

    figure = one(estimate.estimate) + (" %" if percent else "")
    if estimate.low is None or estimate.high is None:
        return figure
    return f"{figure} [{one(estimate.low)}, {one(estimate.high)}]"
