"""What everybody must know of a dataset before and after training on it: rows that went, and too few that stayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuneloop.data import ledger
from tuneloop.language import current, t

LOST = 0.2
"""A larger share of dropped rows is worth a loud word: mostly a wrong setting or a misread file."""
FEW = 20
"""Fewer rows to train on teach a model little but those rows."""
REASONS = 3
SEMICOLON = {"en": "; ", "zh": "；"}


def cautions(counts: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """Sentences about a dataset's `counts` and `steps` (of its manifest); `where` is its ledger. [] if all is well.

    >>> cautions({"rows_in": 100, "train": 90, "dropped": 10}, [], "ledger.jsonl")
    []
    >>> cautions({"rows_in": 8, "train": 8}, [], "ledger.jsonl")
    ['Rows left to train on: 8, which is too few to learn more than these rows. Add data.']
    """
    rows, dropped, train = (int(counts.get(key) or 0) for key in ("rows_in", "dropped", "train"))
    said = []
    if dropped > LOST * rows:
        lost = {"dropped": f"{dropped:,}", "rows": f"{rows:,}", "percent": round(100 * dropped / max(rows, 1))}
        why = top_reasons(steps)
        said.append(
            t("{dropped} of {rows} rows were dropped ({percent} %): {reasons}. Each row and its reason: {ledger}",
              **lost, reasons=why, ledger=where)
            if why else
            t("{dropped} of {rows} rows were dropped ({percent} %). Each row and its reason: {ledger}",
              **lost, ledger=where)
        )  # fmt: skip
    if "train" in counts and train < FEW:
        said.append(t("Rows left to train on: {n}, which is too few to learn more than these rows. Add data.", n=train))
    return said


def top_reasons(steps: Sequence[Mapping[str, Any]]) -> str:
    """The most frequent reasons for dropped rows with their numbers, most first.

    >>> top_reasons([{"reason": "no answer", "dropped": 2}, {"reason": "too long", "dropped": 5}])
    'longer than max_length (5); nothing to learn: no answer (2)'
    """
    words = ledger.words()
    lost = sorted((s for s in steps if s.get("dropped")), key=lambda s: -int(s["dropped"]))
    shown = [
        t("{reason} ({n})", reason=words.get(s["reason"], s["reason"]), n=f"{int(s['dropped']):,}")
        for s in lost[:REASONS]
    ]
    return SEMICOLON[current()].join(shown)


def nothing_held() -> str:
    """The sentence for a dataset without held-out rows."""
    return t("Nothing was held out, so there is no comparison of loss: raise prepare.validation or add rows.")
