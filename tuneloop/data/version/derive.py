"""The part of a version that is derived from its training rows, and kept apart from what is held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneloop.base.records import LedgerEntry, Record
from tuneloop.data.augmenting.augment import Derived, Helpers, augment
from tuneloop.data.cleaning.clean import clean, steps
from tuneloop.data.dedupe.exact import Compared, dialogue_text
from tuneloop.data.dedupe.near import contaminated
from tuneloop.data.dedupe.shared_turns import question
from tuneloop.data.ledger import Ledger
from tuneloop.data.version.holdout import SplitChoice
from tuneloop.data.version.lengths import Encode, fit_lengths
from tuneloop.data.version.rows import PreparedRows, RowSubset
from tuneloop.data.version.shards import Shard, ShardRow, begun, finish
from tuneloop.recipe.schema import CleanPart, PreparePart, Recipe


def derived(
    work: Path, rows: PreparedRows, choice: SplitChoice, recipe: Recipe, encode: Encode, helpers: Helpers
) -> tuple[PreparedRows, SplitChoice]:
    """The rows with those that were derived from training rows, which are training rows themselves.

    Made once: after a crash the finished batches, and the finished part, are taken as they are.
    """
    there = Shard(work / "derived")
    if not (there.folder / "part.json").is_file():
        train = RowSubset(rows, [at for at, side in enumerate(choice.sides) if side == "train"])
        judge = _Judge(rows, choice, recipe.prepare.near)
        derived_rows = augment(
            train, recipe.prepare.augment, helpers, recipe.seed, allowed=judge, folder=work / "batches"
        )
        _write(there.folder, derived_rows, judge, recipe.prepare, encode)
    more = PreparedRows([*rows.parts, there])
    return more, replace(choice, sides=[*choice.sides, *["train"] * (len(more) - len(rows))])


class _Judge:
    """Tells which derived rows may be trained on, and remembers those too near to a held-out row."""

    def __init__(self, rows: PreparedRows, choice: SplitChoice, threshold: float) -> None:
        self.rows, self.threshold = rows, threshold
        self.known = {rows.ids[at] for at, side in enumerate(choice.sides) if side == "train"}
        self.held = RowSubset(rows, [at for at, side in enumerate(choice.sides) if side in ("validation", "test")])
        self.sketches = Compared()
        for at in range(0, len(self.held), 1024):
            self.sketches.add(self.held[at : at + 1024])
        self.questions = {text: n for n, record in enumerate(self.held) if (text := question(record))}
        self.dropped: list[tuple[str, Record, LedgerEntry]] = []
        """Method, the derived row, and why it must go."""

    def __call__(self, method: str, records: Sequence[Record]) -> list[str]:
        """For each record "", or why it may not be trained on."""
        out = [""] * len(records)
        for n, record in enumerate(records):
            out[n] = "nothing new" if record.id in self.known else ""
            self.known.add(record.id)
        for n, record in enumerate(records):
            if not out[n] and (twin := self.questions.get(question(record))) is not None:
                self._drop(method, record, self.rows.place(self.held.numbers[twin]))
                out[n] = "nearly a held-out row"
        own = Compared()
        own.add(records)
        pairs = contaminated(
            self.sketches.sketches,
            own.sketches,
            lambda at: [dialogue_text(self.held[n]) for n in at.tolist()],
            lambda at: [dialogue_text(records[n]) for n in at.tolist()],
            self.threshold,
        )
        for i, j, share in zip(pairs.i.tolist(), pairs.j.tolist(), pairs.jaccard.tolist(), strict=True):
            if not out[i]:
                out[i] = "nearly a held-out row"
                self._drop(method, records[i], f"{self.rows.place(self.held.numbers[j])} {share:.2f}")
        return out

    def _drop(self, method: str, record: Record, twin: str) -> None:
        where = (record.file, record.line, record.id, twin)
        self.dropped.append((method, record, LedgerEntry("dropped", "augment", "nearly a held-out row", *where)))


def _write(folder: Path, derived_rows: Derived, judge: _Judge, part: PreparePart, encode: Encode) -> None:
    """The part of derived rows. No raw row stands behind them, so each is an "added" entry that names its parent.

    They are cleaned like the others, but what repeats itself, refuses or has no sense goes; so does what is too long:
    a piece of a derived row is no row.
    """
    draft = begun(folder)
    wanted = steps(_strict(part.clean), part.turns)
    with Ledger(draft / "ledger.jsonl") as ledger:
        cleaned_rows: list[tuple[str, Record]] = []
        for method, record in derived_rows.records:
            cleaned, entries = clean(record, wanted)
            ledger.add(_added(method, cleaned or record), *entries)
            cleaned_rows += [(method, cleaned)] if cleaned else []
        for method, record, reason in judge.dropped:
            ledger.add(_added(method, record), reason)
        strict = part.model_copy(update={"too_long": "reject"})
        records, origins, samples = fit_lengths([record for _, record in cleaned_rows], encode, strict, ledger)
    methods = Counter(cleaned_rows[at][0] for at in origins)
    summary = {
        "made": {m: methods[m] for m in derived_rows.rejected},
        "rejected": {m: dict(c) for m, c in derived_rows.rejected.items()},
    }
    meta: dict[str, Any] = {"rows": {}, "counts": ledger.counts(), "augment": summary}
    finish(folder, draft, records, [ShardRow(record) for record in records], samples, meta)


def _added(method: str, record: Record) -> LedgerEntry:
    return LedgerEntry("added", "augment", method, record.file, record.line, record.id, record.parent)


def _strict(part: CleanPart) -> CleanPart:
    """The cleaning of rows that nobody has to keep: what is only marked otherwise is dropped."""
    marked = [key for key in ("repetition", "refusal", "gibberish") if getattr(part, key) == "mark"]
    return part.model_copy(update=dict.fromkeys(marked, "drop"))
