"""A claim of a recipe, held against what its variants cost and scored: held, not held, or not separable here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tuneloop.base.language import t
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.metrics import METRICS
from tuneloop.evaluation.paired import Paired
from tuneloop.evaluation.run_figures import paired_runs
from tuneloop.recipe.schema import ClaimPart
from tuneloop.report.costs import Cost

Ruling = Literal["held", "not held", "not separable", "not defined"]
QUALITIES = ("accuracy", "preferred", "loss", "chrf", "rougeL")
"""Metrics by which a model's quality is compared, where both variants have them."""


@dataclass(frozen=True, slots=True)
class ClaimLine:
    """One thing that a claim says: a cost as a share of the other's, or a share of the quality that is lost."""

    what: str
    """"time", "memory", "trained", or a metric of QUALITIES."""
    limit: float
    share: float | None
    low: float | None
    high: float | None
    ruling: Ruling

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class ClaimFinding:
    """What came out of a claim."""

    variant: str
    against: str
    lines: tuple[ClaimLine, ...]

    @property
    def ruling(self) -> Ruling:
        """Held if every line is; not held if one is not; else it is open."""
        rulings = [line.ruling for line in self.lines]
        order: tuple[Ruling, ...] = ("not held", "not separable", "held")
        return next((ruling for ruling in order if ruling in rulings), "not defined")

    def as_dict(self) -> dict[str, Any]:
        lines = [line.as_dict() for line in self.lines]
        return {"variant": self.variant, "against": self.against, "ruling": self.ruling, "lines": lines}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ClaimFinding:
        lines = tuple(ClaimLine(**{k: one[k] for k in ClaimLine.__slots__}) for one in content["lines"])
        return cls(content["variant"], content["against"], lines)


def finding(claim: ClaimPart, costs: tuple[Cost, Cost], evaluations: tuple[Evaluation, Evaluation]) -> ClaimFinding:
    """What came out of a claim; the costs and evaluations of its variant and of the one it is held against."""
    lines: list[ClaimLine] = []
    if claim.cost is not None:
        mine, other = costs
        for what, paid, against in (
            ("time", mine.seconds, other.seconds),
            ("memory", mine.memory_gb, other.memory_gb),
            ("trained", mine.trained, other.trained),
        ):
            share = paid / against if paid is not None and against else None
            ruling: Ruling = "not defined" if share is None else "held" if share <= claim.cost else "not held"
            lines.append(ClaimLine(what, claim.cost, share, None, None, ruling))
    if claim.loss is not None:
        pairs = {p.metric: p for p in paired_runs(evaluations[1], evaluations[0]) if not p.section}
        lines += [lost(pairs[name], claim.loss) for name in QUALITIES if name in pairs]
        if not any(name in pairs for name in QUALITIES):
            lines.append(ClaimLine("quality", claim.loss, None, None, None, "not defined"))
    return ClaimFinding(claim.variant, claim.against, tuple(lines))


def lost(pair: Paired, limit: float) -> ClaimLine:
    """The share of its quality that the `after` side of a pair lacks against the `before` side, held against a limit.

    Of a loss, by how much it is higher. The figure of the `before` side is taken as known; the interval is that of the
    paired difference. Held where all of it lies below the limit, not held where all of it lies above.

    >>> from tuneloop.evaluation.intervals import Estimate
    >>> old, change = Estimate(2.0, 1.9, 2.1, 60, "bca"), Estimate(0.02, 0.01, 0.03, 60, "bca")
    >>> line = lost(Paired("loss", "", old, Estimate(2.02), change, "worse", 0.01), 0.03)
    >>> line.share, line.low, line.high, line.ruling
    (0.01, 0.005, 0.015, 'held')
    """
    full, change = pair.before.estimate, pair.difference
    if not full or change.estimate is None:
        return ClaimLine(pair.metric, limit, None, None, None, "not defined")
    sign = -1.0 if METRICS[pair.metric].higher_is_better else 1.0
    share, *bounds = (
        None if figure is None else sign * figure / full for figure in (change.estimate, change.low, change.high)
    )
    if None in bounds:
        return ClaimLine(pair.metric, limit, share, None, None, "not separable")
    low, high = sorted(b for b in bounds if b is not None)
    ruling: Ruling = "held" if high < limit else "not held" if low > limit else "not separable"
    return ClaimLine(pair.metric, limit, share, low, high, ruling)


def rulings() -> dict[Ruling, str]:
    """A ruling in words."""
    return {
        "held": t("held"),
        "not held": t("not held"),
        "not separable": t("not separable here"),
        "not defined": t("not defined"),
    }


def rows(one: ClaimFinding) -> list[tuple[str, str, str, str, Ruling]]:
    """(what, what was claimed, what came out, ruling in words, ruling) of each line."""
    names = {"time": t("training time"), "memory": t("memory at its peak"), "trained": t("trained weights")}
    out = []
    for line in one.lines:
        costs = line.what in names
        metric = METRICS.get(line.what)
        name = names.get(line.what) or (metric.label() if metric else t("quality"))
        limit = f"{100 * line.limit:.3g} %"
        claimed = t("at most {limit}", limit=limit) if costs else t("less than {limit} lost", limit=limit)
        out.append((name, claimed, _came_out(line, costs), rulings()[line.ruling], line.ruling))
    return out


def _came_out(line: ClaimLine, costs: bool) -> str:
    if line.share is None:
        return t("not measured")
    share = f"{100 * line.share:.1f} %".replace("-", "\u2212")
    if costs:
        return share
    words = t("{share} lost", share=share)
    if line.low is None or line.high is None:
        return words
    low, high = (f"{100 * bound:.1f}".replace("-", "\u2212") for bound in (line.low, line.high))
    return f"{words} [{low}, {high}]"


def sentence(one: ClaimFinding) -> str:
    """The claim and its ruling in one sentence."""
    facts = {"variant": one.variant, "against": one.against, "ruling": rulings()[one.ruling]}
    return t("The claim about {variant} against {against}: {ruling}.", **facts)
