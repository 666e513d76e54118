"""The gate: is the new run good enough to take the old one's place?"""

from __future__ import annotations

from dataclasses import dataclass

from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.metrics import SLACK
from tuneloop.evaluation.paired import Separation
from tuneloop.evaluation.run_figures import paired_runs


@dataclass(frozen=True, slots=True)
class Verdict:
    """`better`, and why in words: the losses on the same held-out rows, and the probes that fail."""

    better: bool
    old_loss: float | None
    new_loss: float | None
    failed: tuple[str, ...]
    separation: Separation | None = None
    """Whether the new run's loss, or of pairs its share of preferred ones, differs from the old one's by more than
    chance; None where what the rows scored is not known. The gate itself asks only whether the new run is no worse."""


def better(old: Evaluation, new: Evaluation) -> Verdict:
    """Compare two evaluations that were measured on the same held-out rows.

    >>> from tuneloop.evaluation.evaluation import Scores
    >>> better(Evaluation(after=Scores({"loss": 2.0})), Evaluation(after=Scores({"loss": 1.9}))).better
    True
    """
    before, after = old.after["loss"], new.after["loss"]
    failed = tuple(probe.name for probe in new.probes if not probe.passed)
    # Without a loss and without probes there is no evidence, and the old run keeps its place.
    unmeasured = before is None and bool(new.probes)
    holds = unmeasured or (before is not None and after is not None and after <= before * (1 + SLACK))
    share, new_share = old.after["preferred"], new.after["preferred"]
    if share is not None and new_share is not None:
        holds = new_share >= share  # after preference training the loss of an answer says little, and its rank all
    pairs = {pair.metric: pair for pair in paired_runs(old, new) if pair.section == ""}
    decisive = pairs.get("preferred", pairs.get("loss"))
    separation = decisive.separation if decisive else None
    # What is wrong with the run itself makes its figures those of another model.
    return Verdict(holds and not failed and not new.findings, before, after, failed, separation)
