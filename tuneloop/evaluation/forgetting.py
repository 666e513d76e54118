"""Whether training made the model worse at what it knew: the paired loss of the general set's facts.

Each language is judged by itself: a run on Chinese dialogues may gain in Chinese what it forgets in English. The losses
of instructions and safety are told as well and judge nothing: they are of answers in one form (a letter, JSON, a
refusal), which every change of manner moves. So it does a little with a fact, too: what counts as forgotten is more,
MARGIN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from tuneloop.base.language import listed, t
from tuneloop.evaluation import intervals
from tuneloop.evaluation.general_set import KNOWLEDGE, VERSION, section_title
from tuneloop.evaluation.intervals import Estimate
from tuneloop.evaluation.paired import RowScores

FACTS = f"general/{KNOWLEDGE}-"
"""How the sections begin that are judged."""
Forgot = Literal["forgot", "within margin", "not separable", "improved", "not defined"]
MARGIN = 0.15
"""Nats a token that the loss of facts must have risen by, with its whole interval. Chosen on runs of SmolLM2-135M, as
`python -m benchmarks forgetting` makes them: the lower bounds of ten healthy ones lay below 0 (their upper
ones up to 0.14), those of three with ten epochs on one domain above 0.3."""
SMALLEST = 0.01
"""Nats a token below which a change is none, however narrow its interval: rounding is no learning."""
LEAST = 8
"""Rows of a section below which nothing is concluded of it."""


@dataclass(frozen=True, slots=True)
class SectionChange:
    """The mean loss of a section's rows before and after, and the paired difference."""

    before: float
    after: float
    difference: Estimate

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> SectionChange:
        return cls(content["before"], content["after"], Estimate.from_dict(content["difference"]))

    def as_dict(self) -> dict[str, Any]:
        return {"before": self.before, "after": self.after, "difference": self.difference.as_dict()}

    @property
    def low(self) -> float:
        """The least that the loss rose by, as far as the interval tells."""
        change = self.difference
        return (change.estimate or 0.0) if change.low is None else change.low

    @property
    def high(self) -> float:
        """The most that it rose by."""
        change = self.difference
        return (change.estimate or 0.0) if change.high is None else change.high


@dataclass(frozen=True, slots=True)
class Forgetting:
    """What a run did to the general set: its facts, and each section; `forgot` names those that were forgotten."""

    verdict: Forgot
    facts: SectionChange | None = None
    """Of both languages."""
    sections: Mapping[str, SectionChange] = field(default_factory=dict)
    forgot: tuple[str, ...] = ()
    margin: float = MARGIN
    version: str = VERSION
    """Of the general set: figures of two versions are not compared."""

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Forgetting:
        known = {f.name: content[f.name] for f in fields(cls) if f.name in content}
        every = content.get("facts")
        known["facts"] = SectionChange.from_dict(every) if every else None
        known["sections"] = {k: SectionChange.from_dict(one) for k, one in (content.get("sections") or {}).items()}
        return cls(**{**known, "forgot": tuple(content.get("forgot") or ())})

    def as_dict(self) -> dict[str, Any]:
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        every = self.facts.as_dict() if self.facts else None
        sections = {name: one.as_dict() for name, one in self.sections.items()}
        return {**own, "facts": every, "sections": sections, "forgot": list(self.forgot)}


def forgetting(rows: Sequence[RowScores]) -> Forgetting | None:
    """What was forgotten, from the losses of the general set's rows; None where it was not measured."""
    general = [row for row in rows if row.section.startswith("general/") and "loss" in row.before]
    if not general:
        return None
    losses: dict[str, list[tuple[float, float]]] = {}
    for row in general:
        old, new = row.before["loss"], row.after.get("loss")
        if old is not None and new is not None:
            losses.setdefault(row.section, []).append((old, new))
    sections = {name: _change(pairs) for name, pairs in losses.items() if len(pairs) >= LEAST}
    facts = {name: change for name, change in sections.items() if name.startswith(FACTS)}
    if not facts:
        return Forgetting("not defined", None, sections)
    every = _change([pair for name, pairs in losses.items() if name.startswith(FACTS) for pair in pairs])
    forgot = tuple(name for name, change in facts.items() if change.low > MARGIN)
    return Forgetting(judged(every, facts), every, sections, forgot)


def _change(pairs: Sequence[tuple[float, float]]) -> SectionChange:
    before, after = [old for old, _ in pairs], [new for _, new in pairs]
    n = len(pairs)
    return SectionChange(sum(before) / n, sum(after) / n, intervals.mean_difference(before, after))


def judged(every: SectionChange, sections: Mapping[str, SectionChange]) -> Forgot:
    """What the changes of the facts say, all together and in each language.

    >>> def change(low, high): return SectionChange(2.0, 2.0 + (low + high) / 2, Estimate((low + high) / 2, low, high))
    >>> [judged(change(-0.2, 0.1), {"a": change(*span)}) for span in ((0.2, 0.6), (0.05, 0.3), (-0.2, 0.1))]
    ['forgot', 'within margin', 'not separable']
    """
    worst = max(change.low for change in sections.values())
    if worst > MARGIN:
        return "forgot"
    if worst > SMALLEST:
        return "within margin"
    return "improved" if every.high < -SMALLEST else "not separable"


def sentence(forgotten: Forgetting) -> str:
    """The verdict for a reader, with its figures.

    >>> change = SectionChange(2.0, 2.1, Estimate(0.1, 0.05, 0.14, 96))
    >>> sentence(Forgetting("within margin", change, {"general/knowledge-en": change}))[:85]
    'Nothing was forgotten: the loss of facts rose by no more than a change of manner does'
    """
    every = forgotten.facts
    if every is None:
        return t("Whether something was forgotten is not known: too few rows of the general set fit this model.")
    if forgotten.forgot:
        sections = [f"{section_title(name)} {figures(forgotten.sections[name])}" for name in forgotten.forgot]
        return t(
            "The model forgot. The loss of right answers rose: {sections}. Train fewer epochs, at a lower rate, or "
            "with general dialogues among the rows.",
            sections=listed(sections),
        )
    several = sum(name.startswith(FACTS) for name in forgotten.sections) > 1
    together = t("in both languages together {figures}", figures=figures(every)) if several else figures(every)
    if forgotten.verdict == "within margin":
        return t(
            "Nothing was forgotten: the loss of facts rose by no more than a change of manner does, {figures}.",
            figures=together,
        )
    if forgotten.verdict == "improved":
        return t("Nothing was forgotten: the loss of facts fell, {figures}.", figures=together)
    return t("The loss of facts before and after is not separable: {figures}.", figures=together)


def figures(change: SectionChange) -> str:
    """Before, after, and the difference with its interval.

    >>> figures(SectionChange(2.0, 2.1, Estimate(0.1, -0.05, 0.15, 96)))
    '2.00 → 2.10 (+0.10, 95 % interval −0.05 to +0.15)'
    """

    def one(number: float, sign: str = "") -> str:
        return f"{number:{sign}.2f}".replace("-", "\u2212")

    return t(
        "{before} → {after} ({change}, 95 % interval {low} to {high})",
        before=one(change.before),
        after=one(change.after),
        change=one(change.after - change.before, "+"),
        low=one(change.low, "+"),
        high=one(change.high, "+"),
    )
