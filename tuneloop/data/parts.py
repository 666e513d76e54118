"""The work on single rows, in parts of a few thousand: read, clean, drop repetitions, fit, tokenise.

Each part is a folder that is there whole or not at all, so a crash costs one part; the next `prepare` of the same
recipe takes the finished ones as they are. Memory holds one part, and 16 bytes a row to know repetitions by.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from tuneloop.data import arrow, formats
from tuneloop.data.clean import clean
from tuneloop.data.dedupe import Repeats
from tuneloop.data.fit import Encode, fit
from tuneloop.data.formats import Source
from tuneloop.data.ledger import Ledger
from tuneloop.data.samples import Samples, open_samples
from tuneloop.data.step import Step
from tuneloop.records import LedgerEntry, Message, Record
from tuneloop.sections import DataFile, PreparePart

SIZE = 4096
"""Raw rows in a part."""
Found = list[tuple[DataFile, list[Source]]]
Row = tuple[DataFile, Record | LedgerEntry]
Say = Callable[[int], None]
"""Told how many raw rows are done."""


@dataclass(frozen=True)
class Sources:
    """The files of a recipe, what each is, and its sha256 (label -> 64 hex digits)."""

    found: Found
    digests: dict[str, str]
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """What lay in a folder or archive and is no data: (name, why)."""

    def fixed(self) -> dict[str, str]:
        """Label of a file -> the side that the recipe gives it; those on "auto" are left out."""
        sides = {s.label: side_of(file, s) for file, group in self.found for s in group}
        return {label: side for label, side in sides.items() if side != "auto"}


@dataclass(frozen=True)
class Part:
    """A finished part. Its records lie in an Arrow file that is mapped, not read."""

    folder: Path

    @property
    def meta(self) -> dict[str, Any]:
        """rows (file -> raw rows), counts (of the ledger), kept."""
        value: dict[str, Any] = json.loads((self.folder / "part.json").read_text(encoding="utf-8"))
        return value

    @property
    def table(self) -> pa.Table:
        return arrow.mapped(self.folder / "records.arrow")

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.jsonl"

    def samples(self) -> Samples:
        return open_samples(self.folder / "samples")


_FIRST = {"test": 0, "validation": 1}
"""Files of a given side are read first, so that of two equal rows the one in the test file stays."""


def side_of(file: DataFile, source: Source) -> str:
    """The side that the recipe, or the source's own name in a folder, gives its rows; "auto" where neither does."""
    return source.side if file.split == "auto" else file.split


def raw_rows(found: Found, seed: int) -> Iterator[Row]:
    """Every raw row with the file entry it belongs to. `seed` is that of a sample."""
    for file, sources in sorted(found, key=lambda pair: _FIRST.get(pair[0].split, 2)):
        ordered = sorted(sources, key=lambda source: _FIRST.get(side_of(file, source), 2))
        for item in formats.read(file, sources if file.rows or file.sample else ordered, seed):
            yield file, item


def make(
    home: Path, rows: Iterable[Row], part: PreparePart, steps: Sequence[Step], encode: Encode, say: Say
) -> list[Part]:
    """All parts, made or found. `home` is the working folder that belongs to this recipe, these files, this code."""
    repeats = Repeats() if part.dedupe != "off" else None
    done: list[Part] = []
    count = 0
    rows = iter(rows)
    while chunk := list(islice(rows, SIZE)):
        there = Part(home / f"part-{len(done):05d}")
        if (there.folder / "part.json").is_file():
            _known_again(chunk, steps, repeats)
        else:
            _write(there.folder, chunk, part, steps, encode, repeats)
        done.append(there)
        count += len(chunk)
        if len(chunk) == SIZE:
            say(count)
    return done


def _known_again(rows: list[Row], steps: Sequence[Step], repeats: Repeats | None) -> None:
    """The rows of a finished part, so that later rows that repeat them are found."""
    for _, item in rows if repeats else ():
        record = _cleaned(item, steps, Ledger())
        if record is not None and repeats:
            repeats.entry(record)


def _write(
    folder: Path, rows: list[Row], part: PreparePart, steps: Sequence[Step], encode: Encode, repeats: Repeats | None
) -> None:
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    ledger = Ledger(draft / "ledger.jsonl")
    kept: list[Record] = []
    often: dict[tuple[str, int], int] = {}
    counts = Counter[str]()
    for file, item in rows:
        counts[item.file] += 1
        record = _cleaned(item, steps, ledger)
        if record is None:
            continue
        if repeats and (entry := repeats.entry(record)):
            ledger.add(entry)
            if entry.action == "dropped":
                continue
        if part.system and record.kind in ("chat", "judged", "preference"):
            record = _with_system(record, part.system, ledger)
        kept.append(record)
        often[record.file, record.line] = file.repeat
    records, samples = fit(kept, encode, part, ledger) if kept else ([], Samples.of([]))
    ledger.close()
    arrow.spool(draft / "records.arrow", [arrow.batch(records, [often[r.file, r.line] for r in records])])
    samples.write(draft / "samples")
    meta = {"rows": counts, "counts": ledger.counts(), "kept": len(records)}
    (draft / "part.json").write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")
    os.rename(draft, folder)


def _cleaned(item: Record | LedgerEntry, steps: Sequence[Step], ledger: Ledger) -> Record | None:
    if isinstance(item, LedgerEntry):
        ledger.add(item)
        return None
    record, entries = clean(item, tuple(steps))
    ledger.add(*entries)
    return record


def _with_system(record: Record, system: str, ledger: Ledger) -> Record:
    if record.messages[0].role == "system":
        return record
    ledger.add(LedgerEntry("changed", "system", "system prompt added", record.file, record.line, record.id))
    return record.with_messages((Message("system", system), *record.messages))
