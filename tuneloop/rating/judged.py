"""How far a judge and people agree about the same pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuneloop.base.language import t
from tuneloop.evaluation.intervals import Estimate
from tuneloop.evaluation.judge import FILE, Docket, JudgedPair, JudgeResults
from tuneloop.rating.agreement import kappa, spearman
from tuneloop.rating.rating import SCALES, Rating
from tuneloop.rating.results import decision
from tuneloop.rating.study import Study
from tuneloop.runs.journal import Journal


@dataclass(frozen=True, slots=True)
class JudgeAgreement:
    """Cohen's kappa of the choices, both bad being a tie; Spearman's correlation of each scale that both scored."""

    judge: str
    kappa: Estimate
    spearman: Mapping[str, Estimate]


def docket(study: Study, judge: str) -> Docket:
    """What a judge is to be asked about the rows of a study, gold rows among them not."""
    pairs = [pair for pair in study.pairs.values() if not pair.right]
    return Docket(judge, pairs, Journal(study.folder / FILE))


def judges(study: Study) -> list[str]:
    """The judges that have been asked about a study, by name."""
    names = (line.get("judge") for line in Journal(study.folder / FILE).lines())
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def with_people(study: Study) -> list[tuple[JudgeResults, JudgeAgreement | str]]:
    """The figures of each judge of a study, and its agreement with people, or why there is none."""
    out = []
    for name in judges(study):
        asked_before = docket(study, name)
        if asked_before.readings:
            pairs = asked_before.judged()
            out.append((asked_before.results(), agreement(study, name, pairs) or disagreement(study, pairs)))
    return out


def agreement(study: Study, judge: str, judged: Sequence[JudgedPair]) -> JudgeAgreement | None:
    """The agreement of a judge with the raters, None where there is no pair that both decided."""
    people: dict[str, list[Rating]] = defaultdict(list)
    for rating in study.ratings():
        if rating.choice and rating.kind == "row":
            people[rating.pair].append(rating)
    seen = [one for one in judged if one.choice and one.pair in people]
    if not seen:
        return None
    theirs = [decision([rating.chosen(study.models) for rating in people[one.pair]]) for one in seen]
    choices = kappa([one.choice for one in seen], ["tie" if choice == "both_bad" else choice for choice in theirs])
    return JudgeAgreement(judge, choices, _correlations(study, seen, people))


def disagreement(study: Study, judged: Sequence[JudgedPair]) -> str:
    """Why there is no agreement of a judge with the raters, in the reader's language; "" where there may be one."""
    decided = {one.pair for one in judged if one.choice}
    if not decided:
        return t("not defined, because the judge gave no verdict")
    rated = {rating.pair for rating in study.ratings() if rating.choice and rating.kind == "row"}
    if not rated:
        return t("nobody has rated these pairs yet")
    return "" if rated & decided else t("people rated other rows than those that the judge decided")


def _correlations(
    study: Study, judged: Sequence[JudgedPair], people: Mapping[str, Sequence[Rating]]
) -> dict[str, Estimate]:
    out = {}
    for n, scale in enumerate(SCALES):
        mine: list[tuple[float, ...]] = []
        theirs: list[tuple[float, ...]] = []
        for one in judged:
            views = [[rating.of(model).scores[n] for rating in people[one.pair]] for model in study.models]
            given = [[score for score in scores if score is not None] for scores in views]
            if one.scores is not None and all(given):
                mine.append(tuple(scores[n] for scores in one.scores))
                theirs.append(tuple(sum(scores) / len(scores) for scores in given))
        if mine:
            out[scale] = spearman(mine, theirs)
    return out
