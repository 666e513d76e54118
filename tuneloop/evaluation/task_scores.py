"""What lm-evaluation-harness measured of both models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One metric of one task: its value before and after, the harness's own standard errors, and its rows."""

    task: str
    metric: str
    before: float | None
    after: float | None
    before_error: float | None = None
    after_error: float | None = None
    rows: int = 0
    higher_is_better: bool = True

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TaskScore:
        return cls(**{f.name: content[f.name] for f in fields(cls) if f.name in content})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
