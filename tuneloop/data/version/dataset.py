"""A dataset version on disk: datasets/<name>/<hash12>/, written whole or not at all (`build.py` makes it).

    manifest.json   where it came from, every count, the digests of the rest
    data/           train.parquet, validation.parquet, test.parquet: one row a record (`arrow.py` has the columns)
    ledger.jsonl    every row that was dropped, changed, marked or added
    card.html       for people; profile.json has its numbers, README.md tells `datasets.load_dataset` the files
    tokens/<key>/   the samples of each side for one tokenizer: made anew when missing

The hash is of what will be trained (rows, sides, repeats, in order), whatever tokenizer counts them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tuneloop.base.errors import DataError
from tuneloop.base.files import printable, sha256_of
from tuneloop.base.records import Record
from tuneloop.data import arrow
from tuneloop.data.tokens.samples import Sequences, open_samples, write
from tuneloop.data.version.lengths import Encode
from tuneloop.data.version.split import SIDES, Split

FORMAT = 2


@dataclass(frozen=True)
class Dataset:
    """A version that exists and was found whole. `hash` is the first 12 hex digits."""

    path: Path
    name: str
    hash: str
    manifest: dict[str, Any]

    def file(self, side: Split) -> Path:
        return self.path / "data" / f"{side}.parquet"

    def batches(self, side: Split) -> Iterator[pa.RecordBatch]:
        """The rows of a side, a thousand at a time; none where the side is empty."""
        import pyarrow.parquet as pq

        if self.file(side).is_file():
            with pq.ParquetFile(self.file(side)) as file:
                yield from file.iter_batches(batch_size=arrow.BATCH)

    def records(self, side: Split) -> list[Record]:
        """The records of one side, in the order of the files; training rows as often as their file's `repeat`."""
        return [record for record, _, repeat in self.rows(side) for _ in range(repeat)]

    def training_rows(self, numbers: Iterable[int]) -> dict[int, Record]:
        """Number -> record, of those that `records("train")` has at these numbers; no other is made into an object."""
        wanted, begin, records = np.unique(np.fromiter(numbers, np.int64)), 0, dict[int, Record]()
        for batch in self.batches("train"):
            ends = begin + np.cumsum(batch.column("repeat").to_numpy())
            mine = wanted[(wanted >= begin) & (wanted < ends[-1])] if len(ends) else wanted[:0]
            places = np.searchsorted(ends, mine, "right")
            rows = arrow.records(batch.take(pa.array(places)))
            records.update((int(number), record) for number, (record, _) in zip(mine, rows, strict=True))
            begin = int(ends[-1]) if len(ends) else begin
        return records

    def ids(self, side: Split) -> Iterator[str]:
        """The id of every row of a side."""
        for batch in self.batches(side):
            yield from batch.column("id").to_pylist()

    def labels(self, side: Split, *, repeated: bool = True) -> list[str]:
        """The label of each row of a side, from its column; with `repeated` as often as `records` has the row."""
        return self._column(side, "label", repeated)

    def files(self, side: Split) -> list[str]:
        """The raw file of each row of a side, as often as `records` has the row."""
        return self._column(side, "file", True)

    def _column(self, side: Split, name: str, repeated: bool) -> list[str]:
        out = []
        for batch in self.batches(side):
            often = batch.column("repeat").to_pylist() if repeated and side == "train" else [1] * len(batch)
            cells = batch.column(name).to_pylist()
            out += [cell for cell, n in zip(cells, often, strict=True) for _ in range(n)]
        return out

    def held_out(self) -> dict[str, Split]:
        """The side of each row that is not trained on, by id."""
        sides: tuple[Split, ...] = ("validation", "test")
        return {row: side for side in sides for row in self.ids(side)}

    def rows(self, *only: Split) -> Iterator[tuple[Record, Split, int]]:
        """Every row once: (record, side, repeat). Only training rows are repeated."""
        for side in only or SIDES:
            for batch in self.batches(side):
                for record, repeat in arrow.records(batch):
                    yield record, side, repeat if side == "train" else 1

    def thinks(self) -> bool:
        """Whether any training row has a thought, apart or in its text."""
        for batch in self.batches("train"):
            turn = batch.column("messages").flatten()
            apart = pc.fill_null(pc.not_equal(turn.field("reasoning_content"), ""), False)
            inside = pc.match_substring(turn.field("content"), "</think>")
            if pc.any(pc.or_(apart, inside)).as_py():
                return True
        return False

    def samples(self, side: Split, key: str, encode: Encode) -> Sequences:
        """What one side is trained on: as it was tokenised, or tokenised now and kept. `key` names the tokenizer."""
        folder = self.path / "tokens" / key / side
        try:
            return open_samples(folder)
        except DataError:
            often = side == "train"
            return write(folder, (_encoded(batch, encode, often) for batch in self.batches(side)))


def _encoded(batch: pa.RecordBatch, encode: Encode, often: bool) -> Sequences:
    return encode([record for record, repeat in arrow.records(batch) for _ in range(repeat if often else 1)])


def open_dataset(path: Path, digest_of: Callable[[Path], str] = sha256_of) -> Dataset:
    """The version in a folder. Raises TL-DATA-NO-DATASET where there is none, TL-DATA-DAMAGED where it is not whole."""
    file = path / "manifest.json"
    if not file.is_file():
        raise DataError("TL-DATA-NO-DATASET", where=printable(path))
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}")
        for name, known in manifest["files"].items():
            if digest_of(path / name) != known:
                raise ValueError(f"{name}: sha256")
        return Dataset(path, manifest["name"], manifest["hash"], manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError("TL-DATA-DAMAGED", where=printable(path), error=str(error)) from error
