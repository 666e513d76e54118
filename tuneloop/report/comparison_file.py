"""comparison.json of a run: the variants of its recipe side by side, and what came out of the recipe's claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuneloop.base.errors import RunError
from tuneloop.report import claims
from tuneloop.report.claims import ClaimFinding
from tuneloop.runs.run import Run

FILE = "comparison.json"


def read_claims(run: Path) -> list[ClaimFinding]:
    """What came out of the claims, [] where nothing was compared. Raises TL-RUN-DAMAGED."""
    content: Any = Run(run).read(FILE)
    try:
        return [ClaimFinding.from_dict(one) for one in content.get("claims") or ()]
    except (AttributeError, KeyError, TypeError) as error:
        raise RunError("TL-RUN-DAMAGED", where=str(run / FILE), error=str(error)) from error


def shown(run: Path) -> list[dict[str, Any]]:
    """The claims as the report shows them: a sentence, its ruling, and a row for each thing that is claimed."""
    return [
        {"sentence": claims.sentence(one), "ruling": one.ruling, "rows": claims.rows(one)} for one in read_claims(run)
    ]
