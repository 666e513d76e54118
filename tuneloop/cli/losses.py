"""The panel after `prepare`: many rows were lost, or nothing is held out; why, and what to change."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.base.language import listed, t
from tuneloop.cli import wrapping
from tuneloop.data.ledger import entries, words
from tuneloop.planning.cautions import cautions, few_held, foreign, nothing_held

if TYPE_CHECKING:
    from tuneloop.data.version.dataset import Dataset
    from tuneloop.recipe.schema import Recipe

MISREAD = ("other shape", "missing value", "unknown role", "unknown turn", "no answer")
NOTED = ("turn keys not used", "value made text", "null left out", "merged cell", "inline thought", "open thought",
         "control token spelled")  # fmt: skip
EXAMPLES = 8
SWITCHED = ("personal data", "lexicon word", "repeats itself", "refusal", "lost characters", "keyboard noise")


def warn(dataset: Dataset, recipe: Recipe) -> list[str]:
    """Print the panel where there is reason to. The sentences it says, so that nobody repeats them."""
    counts, file = dataset.manifest["counts"], dataset.path / "ledger.jsonl"
    sentences = [
        *cautions(counts, dataset.manifest["steps"], str(file)),
        *much_changed(counts, dataset.manifest["steps"], str(file)),
        *foreign(recipe.model.name, dataset.path),
    ]
    if not counts["validation"] and recipe.prepare.validation:
        sentences.append(nothing_held())
    sentences += few_held(counts, recipe.prepare)
    sentences += _read_otherwise(dataset)
    unsaid = _unsaid(dataset)
    if sentences or unsaid:
        reasons, lengths = _dropped(file)
        most = recipe.prepare.max_length
        _panel([*sentences, *unsaid, *_remedies(reasons, lengths, most if isinstance(most, int) else 0)])
    return sentences


REPAIRS = {"markup removed": "prepare.clean.html: false", "wrong encoding repaired": "prepare.clean.mojibake: false"}
"""What a repair is switched off with: where most rows needed it, it may have been no damage."""
MOST = 0.5


def much_changed(counts: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """A sentence for each repair that changed most rows.

    >>> much_changed({"rows_in": 20}, [{"reason": "markup removed", "changed": 15}], "ledger.jsonl")[0][:40]
    '15 of 20 rows were changed: left-over HT'
    """
    rows = int(counts.get("rows_in") or 0)
    return [
        t(
            "{n} of {rows} rows were changed: {reason}. If it was meant to be so, leave it with {switch}. Which rows: "
            "{ledger}",
            n=f"{int(step['changed']):,}",
            rows=f"{rows:,}",
            reason=words()[step["reason"]],
            switch=REPAIRS[step["reason"]],
            ledger=where,
        )
        for step in steps
        if step["reason"] in REPAIRS and int(step.get("changed") or 0) > MOST * rows
    ]


def _read_otherwise(dataset: Dataset) -> list[str]:
    """What the reader had to say of rows that stay: keys of turns that nothing reads, values made text."""
    known = words()
    lines = {}
    for step in dataset.manifest["steps"]:
        if step["reason"] in NOTED:
            lines[step["reason"]] = t(
                "{reason} ({n} rows)", reason=known[step["reason"]], n=step["marked"] + step["changed"]
            )
    if not lines:
        return []
    details: dict[str, dict[str, None]] = {reason: {} for reason in lines}
    for line_of_ledger in entries(dataset.path / "ledger.jsonl"):
        if line_of_ledger.reason in details and len(details[line_of_ledger.reason]) < EXAMPLES:
            details[line_of_ledger.reason] |= dict.fromkeys(line_of_ledger.detail.split(", "))
    return [t("{what}: {n}", what=line, n=listed(list(details[reason])[:EXAMPLES])) for reason, line in lines.items()]


def _unsaid(dataset: Dataset) -> list[str]:
    """How many answers are not trained since the chat template cannot write them, and which template can."""
    steps = dataset.manifest["steps"]
    calls, thoughts = (
        sum(s["dropped"] + s["marked"] for s in steps if s["reason"] == f"{what} not written")
        for what in ("call", "thought")
    )
    if not calls + thoughts:
        return []
    every = entries(dataset.path / "ledger.jsonl")
    line = next((advice[0] for e in every if (advice := re.search("model.template: .+", e.detail))), "")
    sentence = t(
        "The model's chat template cannot write tool calls ({calls}) or thoughts ({thoughts}) of these answers, "
        "so they are not trained.",
        calls=calls,
        thoughts=thoughts,
    )
    return [sentence, t("To train them: {line}", line=line)] if line else [sentence]


def _dropped(file: Path) -> tuple[Counter[str], list[int]]:
    """Of a ledger: reason -> dropped rows, and the lengths of those that were too long ("1200 / 1024")."""
    reasons, lengths = Counter[str](), []
    with file.open(encoding="utf-8", newline="\n") as lines:
        for line in map(json.loads, lines):
            if line["action"] == "dropped":
                reasons[line["reason"]] += 1
                if line["reason"] == "too long" and (count := re.match(r"\d+", line["detail"])):
                    lengths.append(int(count[0]))
    return reasons, lengths


def _remedies(reasons: Counter[str], lengths: Sequence[int], max_length: int) -> list[str]:
    """What to change in the recipe for the most frequent reasons. `max_length` is 0 where the model sets it."""
    known = {
        "too long": t("prepare.too_long: turns, split or cut_right keeps what is too long, or a part of it."),
        "repeated": t("prepare.dedupe: off keeps repetitions."),
        "nearly repeated": t("prepare.dedupe: exact keeps what is only nearly equal."),
        "too few turns": t("prepare.turns sets the limits."),
        "too many turns": t("prepare.turns sets the limits."),
        "other language": t("prepare.clean.languages names what is kept."),
        **dict.fromkeys(MISREAD, t("Say in data[].columns which column is what, if the rows were misread.")),
        **dict.fromkeys(SWITCHED, t("A step of prepare.clean that is set to mark instead of drop keeps its rows.")),
    }
    rows: Counter[str] = Counter()
    causes: dict[str, list[str]] = {}
    for reason, n in reasons.most_common(3):
        if reason in known:
            rows[known[reason]] += n
            causes.setdefault(known[reason], []).append(words()[reason])
    remedies = [
        t("Dropped rows: {n} ({reasons}). {remedy}", n=rows[remedy], reasons=listed(why), remedy=remedy)
        for remedy, why in causes.items()
    ]
    longer, more = roomier(lengths, max_length) if max_length else (0, 0)
    if known["too long"] in causes and more:
        at = list(causes).index(known["too long"])
        remedies.insert(at + 1, t("prepare.max_length: {longer} would keep {n} more.", longer=longer, n=more))
    return remedies


def roomier(lengths: Sequence[int], max_length: int) -> tuple[int, int]:
    """A max_length, at most four times as large, that keeps dialogues which were too long; and how many.

    >>> roomier([1100, 1500, 90_000], 1024)
    (1536, 2)
    >>> roomier([90_000], 1024)
    (1024, 0)
    """
    within = [n for n in lengths if n <= max(4 * max_length, 4096)]
    return (-(-max(within) // 128) * 128 if within else max_length), len(within)


def _panel(lines: Sequence[str]) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    wrapping.break_chinese()
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=True, highlight=False, width=120)
    text = Text("\n".join(f"- {line}" for line in lines))
    console.print(Panel(text, title=t("Warning"), title_align="left", border_style="bold yellow", style="yellow"))
