"""The last look before a run costs anything: refuses a mask of nothing, a missing end token, a doubled first token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.data.templates import render
from tuneloop.data.tokens import Sample, marked, turn
from tuneloop.errors import DataError
from tuneloop.language import t
from tuneloop.records import Record


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was looked at. `sample` is one sample's text in runs of (text, trained?)."""

    samples: int
    tokens: int
    label_tokens: int
    longest: int
    sample: list[tuple[str, bool]]
    warnings: tuple[str, ...] = ()
    """What is worth knowing and no reason to stop, in words."""


def unrendered(tokenizer: Any, records: Sequence[Record]) -> list[str]:
    """Warnings about what a template leaves out without a word: thoughts, tool calls, tools."""
    lost = {"reasoning": 0, "calls": 0, "tools": 0}
    for record in records:
        told = _told(tokenizer, record)
        for kind in lost:
            lost[kind] += not all(told[kind])
    said = (
        (lost["reasoning"], t("this chat template leaves the thought out of dialogues: {n}", n=lost["reasoning"])),
        (lost["calls"], t("this chat template leaves the tool calls out of dialogues: {n}", n=lost["calls"])),
        (lost["tools"], t("this chat template leaves the offered tools out of dialogues: {n}", n=lost["tools"])),
    )
    return [words for n, words in said if n]


def stray(tokenizer: Any, records: Sequence[Record]) -> list[str]:
    """A warning about special tokens written as text in the data: the tokenizer takes them for the real ones."""
    special = [token for token in tokenizer.all_special_tokens if len(token) > 2]
    found = [token for r in records for token in special if any(token in m.content for m in r.messages)]
    if not found:
        return []
    return [t("{n} dialogues have {token} in their text, which ends or begins a turn where it stands",
              n=len(found), token=found[0])]  # fmt: skip


def _told(tokenizer: Any, record: Record) -> dict[str, list[bool]]:
    """For each thought, call and tool of a dialogue: whether the text has it in which its turn is trained.

    A template may drop earlier thoughts from the context of later turns; each is trained in its own all the same.
    """
    told: dict[str, list[bool]] = {"reasoning": [], "calls": [], "tools": []}
    for at, message in enumerate(record.messages):
        if message.reasoning or message.tool_calls:
            _, text = turn(tokenizer, record, at)
            told["reasoning"].append(message.reasoning.strip() in text)
            told["calls"] += [_name(call) in text for call in message.tool_calls]
    if record.tools:
        text = render(tokenizer, record.chat(), tools=record.tools)
        told["tools"] = [_name(tool) in text for tool in record.tools]
    return told


def _name(of: dict[str, Any]) -> str:
    return str(of.get("function", {}).get("name", ""))


def preflight(tokenizer: Any, samples: Sequence[Sample], budget: int, records: Sequence[Record] = ()) -> Preflight:
    """Look at every sample, and at what the template leaves out of `records`.

    Raises TL-DATA-PREFLIGHT with all findings together.
    """
    found: list[DataError] = []
    if not samples:
        raise DataError("TL-DATA-NOTHING-LEFT", rows=0, reasons=t("no dialogue has an answer"))

    def count(code: str, bad: list[Sample], **facts: Any) -> None:
        if bad:
            found.append(DataError(code, n=len(bad), of=len(samples), example=bad[0].record, **facts))

    bos = tokenizer.bos_token_id
    count("TL-DATA-NO-LABEL", [s for s in samples if s.labels == 0])
    count("TL-DATA-NO-END", [s for s in samples if not s.ended], end=tokenizer.eos_token)
    # ChatML models call <|im_start|> their bos, and it may open every turn: only a doubled one at the start is a fault.
    count("TL-DATA-DOUBLE-BOS", [s for s in samples if bos is not None and list(s.ids[:2]) == [bos, bos]])
    count(
        "TL-DATA-TOO-LONG",
        [s for s in samples if len(s.ids) > budget],
        budget=budget,
        length=max(len(s.ids) for s in samples),
    )
    if found:
        raise DataError("TL-DATA-PREFLIGHT", causes=found)
    shown = min(samples, key=lambda s: abs(len(s.ids) - 80))
    return Preflight(
        samples=len(samples),
        tokens=sum(len(s.ids) for s in samples),
        label_tokens=sum(s.labels for s in samples),
        longest=max(len(s.ids) for s in samples),
        sample=marked(tokenizer, shown),
        warnings=(*unrendered(tokenizer, records), *stray(tokenizer, records)),
    )
