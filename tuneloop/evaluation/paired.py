"""One metric of the same rows by two models: how far apart they are, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tuneloop.evaluation.intervals import Estimate

Separation = Literal["better", "worse", "not separable", "not defined"]


@dataclass(frozen=True, slots=True)
class RowScores:
    """One row measured by both models: its metrics by name, None where one is not defined for it."""

    id: str
    section: str = ""
    """Its section of the suite: "" for held-out rows, "general/<name>", "file/<name>", "task/<name>"."""
    before: Mapping[str, float | None] = field(default_factory=dict)
    after: Mapping[str, float | None] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RowScores:
        return cls(content["id"], content.get("section", ""), dict(content["before"]), dict(content["after"]))

    def as_dict(self) -> dict[str, Any]:
        return {"id": self.id, "section": self.section, "before": dict(self.before), "after": dict(self.after)}


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

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Paired:
        sides = {key: Estimate.from_dict(content[key]) for key in ("before", "after", "difference")}
        return cls(content["metric"], content["section"], **sides, separation=content["separation"], p=content.get("p"))

    def as_dict(self) -> dict[str, Any]:
        sides = {key: getattr(self, key).as_dict() for key in ("before", "after", "difference")}
        return {"metric": self.metric, "section": self.section, **sides, "separation": self.separation, "p": self.p}
