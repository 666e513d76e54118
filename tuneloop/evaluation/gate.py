"""The gate: is the new run good enough to take the old one's place?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SLACK = 0.005
"""Held-out loss may rise by this share before it counts as worse: less than what another seed changes."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`better`, and why in words: the losses on the same held-out rows, and the probes that fail."""

    better: bool
    old_loss: float | None
    new_loss: float | None
    failed: tuple[str, ...]


def better(old: dict[str, Any], new: dict[str, Any]) -> Verdict:
    """Compare two evaluations (evaluation.json) that were measured on the same held-out rows.

    >>> better({"after": {"loss": 2.0}}, {"after": {"loss": 1.9}}).better
    True
    """
    before, after = old["after"]["loss"], new["after"]["loss"]
    failed = tuple(p["name"] for p in new.get("probes", []) if not p["passed"])
    # Without a loss and without probes there is no evidence, and the old run keeps its place.
    unmeasured = before is None and bool(new.get("probes"))
    holds = unmeasured or (before is not None and after is not None and after <= before * (1 + SLACK))
    pairs = [one["after"].get("preferred") for one in (old, new)]
    if None not in pairs:  # after preference training the loss of an answer says little, and its rank all
        holds = pairs[1] >= pairs[0]
    return Verdict(holds and not failed, before, after, failed)
