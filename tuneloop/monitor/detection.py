"""How a rule stands: what it has seen in the run so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuneloop.recipe.watch import Level


@dataclass(frozen=True, slots=True)
class Detection:
    """A rule holds, on this level, since this optimizer step. `facts` fill the words of its alert."""

    level: Level
    since: int
    facts: dict[str, Any]
