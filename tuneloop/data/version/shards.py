"""The work on single rows, in parts of a few thousand: read, clean, drop repetitions, fit, tokenise.

Each part is a folder that is there whole or not at all, so a crash costs one part; the next `prepare` of the same
recipe takes the finished ones as they are. Memory holds one part, and about 50 bytes a row to know repetitions by.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from tuneloop.base.files import write_atomic
from tuneloop.base.records import LedgerEntry, Message, Record
from tuneloop.data import arrow
from tuneloop.data.cleaning.clean import clean
from tuneloop.data.cleaning.step import Step
from tuneloop.data.dedupe.exact import Repeats
from tuneloop.data.kinds import KINDS
from tuneloop.data.ledger import Ledger
from tuneloop.data.reading import formats
from tuneloop.data.reading.formats import Source
from tuneloop.data.reading.slices import parted
from tuneloop.data.tokens.samples import Sequences, open_samples
from tuneloop.data.version.lengths import Encode, fit_lengths
from tuneloop.data.version.split import Split
from tuneloop.recipe.schema import DataFile, PreparePart

SIZE = 4096
"""Raw rows in a part."""
SCHEMA = arrow.SCHEMA.append(pa.field("given", pa.string()))
"""A record and the side that the recipe, or the name of its file, gives it."""
SourceGroups = list[tuple[DataFile, list[Source]]]
Known = dict[Path, tuple[str, list[int]]]
"""Files on this machine -> their sha256 and stamp (`digest_cache.stamp`) before they were read."""
Say = Callable[[int], None]
"""Told how many raw rows are done."""


class ShardRow(NamedTuple):
    """A raw row that was read, or the reason why not, and what the recipe says of its file."""

    outcome: Record | LedgerEntry
    given: Split | None = None
    repeat: int = 1


@dataclass(frozen=True)
class Sources:
    """The files of a recipe, what each is, and its sha256 (label -> 64 hex digits)."""

    groups: SourceGroups
    digests: dict[str, str]
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """What lay in a folder or archive and is no data: (name, why)."""
    known: Known = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """A finished part. Its records lie in an Arrow file that is mapped, not read."""

    folder: Path

    @property
    def meta(self) -> dict[str, Any]:
        """rows (file -> raw rows), counts (of the ledger), kept; of derived rows also augment (`derive.py`)."""
        facts: dict[str, Any] = json.loads((self.folder / "part.json").read_text(encoding="utf-8"))
        return facts

    @property
    def table(self) -> pa.Table:
        """The records, in `SCHEMA`."""
        return arrow.mapped(self.folder / "records.arrow")

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.jsonl"

    def samples(self) -> Sequences:
        return open_samples(self.folder / "samples")


def side_of(file: DataFile, source: Source) -> Split | None:
    """The side that the recipe gives a file, else the one that its name tells in a folder or archive."""
    if file.split != "auto":
        return file.split
    return None if source.side == "auto" else source.side


def _given(file: DataFile, source: Source, validated: bool) -> Split | None:
    """The side that rows must keep. What is only named like training data gives `prepare.validation` its share, unless
    there is a file to validate with."""
    side = side_of(file, source)
    return None if side == "train" and file.split == "auto" and not validated else side


def raw_rows(file_groups: SourceGroups, seed: int) -> Iterator[ShardRow]:
    """Every raw row. Files of a given side come first, so that of two equal rows the one in the test file stays.

    A slice or a sample counts through all files of its entry; there the files keep their order.
    """
    order: dict[Split | None, int] = {"test": 0, "validation": 1}
    validated = any(side_of(file, source) == "validation" for file, sources in file_groups for source in sources)
    entries: list[tuple[int, DataFile, list[Source]]] = []
    for file, sources in file_groups:
        in_order = file.sample or parted(file.path, file.rows)[1] is not None
        places = [order.get(side_of(file, source), 2) for source in sources]
        groups = (
            [sources] if in_order else [[s for s, r in zip(sources, places, strict=True) if r == n] for n in range(3)]
        )
        entries += [(min(order.get(side_of(file, s), 2) for s in group), file, group) for group in groups if group]
    for _, file, group in sorted(entries, key=lambda one: one[0]):
        given = {source.label: _given(file, source, validated) for source in group}
        for outcome in formats.read(file, group, seed):
            yield ShardRow(outcome, given[outcome.file], file.repeat)


def make(
    home: Path, rows: Iterable[ShardRow], part: PreparePart, steps: Sequence[Step], encode: Encode, say: Say
) -> list[Shard]:
    """All parts, made or found. `home` is the working folder that belongs to this recipe, these files, this code."""
    repeats = Repeats() if part.dedupe != "off" else None
    done: list[Shard] = []
    count = 0
    rows = iter(rows)
    while chunk := list(islice(rows, SIZE)):
        there = Shard(home / f"part-{len(done):05d}")
        if (there.folder / "part.json").is_file():
            _known_again(chunk, steps, repeats)
        else:
            _write(there.folder, chunk, part, steps, encode, repeats)
        done.append(there)
        count += len(chunk)
        if len(chunk) == SIZE:
            say(count)
    return done


def _known_again(rows: list[ShardRow], steps: Sequence[Step], repeats: Repeats | None) -> None:
    """The rows of a finished part, so that later rows that repeat them are found."""
    for row in rows if repeats else ():
        record = _cleaned(row.outcome, steps, Ledger())
        if record is not None and repeats:
            repeats.ledger_entry(record)


def _write(
    folder: Path,
    rows: list[ShardRow],
    part: PreparePart,
    steps: Sequence[Step],
    encode: Encode,
    repeats: Repeats | None,
) -> None:
    draft = begun(folder)
    with Ledger(draft / "ledger.jsonl") as ledger:
        clean_rows = list(_clean_rows(rows, part, steps, repeats, ledger))
        records, origins, samples = fit_lengths([record for record, _ in clean_rows], encode, part, ledger)
    counts = Counter(row.outcome.file for row in rows)
    meta = {"rows": counts, "counts": ledger.counts()}
    finish(folder, draft, records, [clean_rows[at][1] for at in origins], samples, meta)


def begun(folder: Path) -> Path:
    """An empty folder beside that of a part, to make it in."""
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    for old in (draft, folder):  # a folder without part.json is not one of ours
        shutil.rmtree(old, ignore_errors=True)
    draft.mkdir(parents=True)
    return draft


def finish(
    folder: Path,
    draft: Path,
    records: Sequence[Record],
    rows: Sequence[ShardRow],
    samples: Sequences,
    meta: dict[str, Any],
) -> None:
    """Write what the draft lacks beside its ledger, and give it its name. `rows` are where the records came from."""
    batch = arrow.batch(records, [row.repeat for row in rows])
    given = pa.array([row.given for row in rows], pa.string())
    arrow.spool(draft / "records.arrow", pa.RecordBatch.from_arrays([*batch.columns, given], schema=SCHEMA))
    samples.write(draft / "samples")
    write_atomic(draft / "part.json", json.dumps({**meta, "kept": len(records)}), sync=True)
    os.rename(draft, folder)


def _clean_rows(
    rows: list[ShardRow], part: PreparePart, steps: Sequence[Step], repeats: Repeats | None, ledger: Ledger
) -> Iterator[tuple[Record, ShardRow]]:
    """The rows that are clean and new, as they will be trained."""
    for row in rows:
        record = _cleaned(row.outcome, steps, ledger)
        if record is None:
            continue
        if repeats and (repetition := repeats.ledger_entry(record)):
            ledger.add(repetition)
            if repetition.action == "dropped":
                continue
        if part.system and KINDS[record.kind].dialogue:
            record = _with_system(record, part.system, ledger)
        yield record, row


def _cleaned(outcome: Record | LedgerEntry, steps: Sequence[Step], ledger: Ledger) -> Record | None:
    if isinstance(outcome, LedgerEntry):
        ledger.add(outcome)
        return None
    if outcome.notes:
        ledger.add(*(replace(note, id=outcome.id) for note in outcome.notes))
        outcome = replace(outcome, notes=())
    record, entries = clean(outcome, steps)
    ledger.add(*entries)
    return record


def _with_system(record: Record, system: str, ledger: Ledger) -> Record:
    if record.messages[0].role == "system":
        return record
    ledger.add(LedgerEntry("changed", "system", "system prompt added", record.file, record.line, record.id))
    return record.with_messages((Message("system", system), *record.messages))
