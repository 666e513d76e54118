"""The last look before a run costs anything: refuses a mask of nothing, a missing end token, a doubled first token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.data.tokens import Sample, marked
from tuneloop.errors import DataError


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was looked at. `sample` is one sample's text in runs of (text, trained?)."""

    samples: int
    tokens: int
    label_tokens: int
    longest: int
    sample: list[tuple[str, bool]]


def preflight(tokenizer: Any, samples: Sequence[Sample], budget: int) -> Preflight:
    """Look at every sample. Raises TL-DATA-PREFLIGHT with all findings together."""
    found: list[DataError] = []
    if not samples:
        raise DataError("TL-DATA-NOTHING-LEFT")

    def count(code: str, bad: list[Sample], **facts: Any) -> None:
        if bad:
            found.append(DataError(code, n=len(bad), of=len(samples), example=bad[0].record, **facts))

    bos = tokenizer.bos_token_id
    count("TL-DATA-NO-LABEL", [s for s in samples if s.labels == 0])
    count("TL-DATA-NO-END", [s for s in samples if not s.ended], end=tokenizer.eos_token)
    # ChatML models call <|im_start|> their bos, and it may open every turn: only a doubled one at the very start is a fault.
    count("TL-DATA-DOUBLE-BOS", [s for s in samples if bos is not None and list(s.ids[:2]) == [bos, bos]])
    count("TL-DATA-TOO-LONG", [s for s in samples if len(s.ids) > budget], budget=budget,
          length=max(len(s.ids) for s in samples))
    if found:
        raise DataError("TL-DATA-PREFLIGHT", causes=found)
    shown = min(samples, key=lambda s: abs(len(s.ids) - 80))
    return Preflight(
        samples=len(samples),
        tokens=sum(len(s.ids) for s in samples),
        label_tokens=sum(s.labels for s in samples),
        longest=max(len(s.ids) for s in samples),
        sample=marked(tokenizer, shown),
    )
