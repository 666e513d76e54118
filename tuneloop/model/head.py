"""What stands on a backbone: a language head, or scores of labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["causal", "classifier", "masked"]
Answers = Literal["text", "label", "score"]
"""How a model answers: it writes text, names a label, or scores an answer that it is given."""


@dataclass(frozen=True, slots=True)
class Head:
    """What stands on the backbone: a language head, or one score a label (one in all for a reward)."""

    kind: Kind = "causal"
    labels: tuple[str, ...] = ()

    @property
    def answers(self) -> Answers:
        """How a model with this head answers of itself: several labels are named, one alone is a score."""
        if self.kind != "classifier":
            return "text"
        return "label" if len(self.labels) > 1 else "score"


CAUSAL = Head()
