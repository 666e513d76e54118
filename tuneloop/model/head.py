"""What stands on a backbone: a language head, or scores of labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["causal", "classifier", "masked"]


@dataclass(frozen=True, slots=True)
class Head:
    """What stands on the backbone: a language head, or one score a label (one in all for a reward)."""

    kind: Kind = "causal"
    labels: tuple[str, ...] = ()


CAUSAL = Head()
