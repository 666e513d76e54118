"""What is wrong with a run, named by a code: an evaluation with a finding is of another model than was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuneloop.base.errors import RunError
from tuneloop.base.language import sentences


@dataclass(frozen=True, slots=True)
class RunFinding:
    """One fault of a run: its code (TL-RUN-…), and the facts that fill its words."""

    code: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def _error(self) -> RunError:
        facts: dict[str, Any] = dict(self.facts)
        return RunError(self.code, **facts)

    @property
    def what(self) -> str:
        """What is wrong, in the reader's language."""
        return self._error.what

    @property
    def do(self) -> str:
        """What to do about it."""
        return self._error.do

    @property
    def caution(self) -> str:
        """Its code, what is wrong and what to do, for a reader."""
        return f"{self.code}  {sentences(self.what, self.do)}"

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunFinding:
        return cls(content["code"], dict(content.get("facts") or {}))

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "facts": dict(self.facts)}
