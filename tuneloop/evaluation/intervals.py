"""Estimates with 95 % intervals that are fit for small sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval of CONFIDENCE. Nothing in it is ever NaN or infinite: what is not defined is None."""

    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    rows: int = 0
    """Independent rows that it comes from."""
    method: str = ""
    """"wilson", "exact", "newcombe", "bca", "bootstrap"; "" where there is no interval."""
    note: str = ""
    """"few rows", or the reason why it is not defined: a key of `notes` in the words of the report, "" for none."""

    def __post_init__(self) -> None:
        for name in ("estimate", "low", "high"):
            number = getattr(self, name)
            object.__setattr__(self, name, float(number) if number is not None and math.isfinite(number) else None)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Estimate:
        return cls(**{f.name: content[f.name] for f in fields(cls) if f.name in content})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
