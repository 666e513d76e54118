"""All rows of a preparation together: their places and names in memory, their texts on the disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tuneloop.base.records import Kind, Record
from tuneloop.data import arrow
from tuneloop.data.version.shards import Shard
from tuneloop.data.version.split import Split


class PreparedRows(Sequence[Record]):
    """The kept rows of all parts, numbered through. A record is read when it is asked for."""

    def __init__(self, parts: list[Shard]) -> None:
        self.parts = parts
        self.tables: list[pa.Table] = [part.table for part in parts]
        self.metas: list[dict[str, Any]] = [part.meta for part in parts]
        sizes = [table.num_rows for table in self.tables]
        self.starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        shared: dict[Any, Any] = {}
        self.ids: list[str] = self._column("id")
        self.kinds: list[Kind] = [shared.setdefault(v, v) for v in self._column("kind")]
        self.files: list[str] = [shared.setdefault(v, v) for v in self._column("file")]
        self.labels: list[str] = [shared.setdefault(v, v) for v in self._column("label")]
        self.given: list[Split | None] = self._column("given")
        self.lines: list[int] = self._column("line")
        self.repeats: list[int] = self._column("repeat")

    def _column(self, name: str) -> list[Any]:
        return [cell for table in self.tables for cell in table.column(name).to_pylist()]

    def __len__(self) -> int:
        return int(self.starts[-1])

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> list[Record]: ...
    def __getitem__(self, at: int | slice) -> Record | list[Record]:
        if isinstance(at, slice):
            return [self[n] for n in range(*at.indices(len(self)))]
        if not 0 <= at < len(self):
            raise IndexError(at)
        part = int(np.searchsorted(self.starts, at, "right")) - 1
        return next(arrow.records(self.tables[part].slice(at - int(self.starts[part]), 1)))[0]

    def several(self, numbers: NDArray[np.int64]) -> list[Record]:
        """The rows of these numbers, ascending; many times faster than one by one."""
        cuts = np.searchsorted(numbers, self.starts)
        return [
            record
            for n, table in enumerate(self.tables)
            if cuts[n] < cuts[n + 1]
            for record, _ in arrow.records(table.take(pa.array(numbers[cuts[n] : cuts[n + 1]] - self.starts[n])))
        ]

    @property
    def read(self) -> Counter[str]:
        """File -> raw rows that were read from it."""
        out = Counter[str]()
        for meta in self.metas:
            out.update(meta["rows"])
        return out

    @property
    def ledgers(self) -> list[Path]:
        return [part.ledger for part in self.parts]

    def place(self, at: int) -> str:
        """Where row `at` came from, for a ledger's detail."""
        return f"{self.files[at]}:{self.lines[at]}"

    def batches(self) -> Iterator[list[Record]]:
        """Every row, a thousand at a time."""
        for table in self.tables:
            for at in range(0, table.num_rows, arrow.BATCH):
                yield [record for record, _ in arrow.records(table.slice(at, arrow.BATCH))]

    def wholes(self) -> Iterator[list[list[str]]]:
        """The texts of every row, a thousand rows at a time; see `arrow.wholes`."""
        for table in self.tables:
            for one in table.to_batches(max_chunksize=arrow.BATCH):
                yield arrow.wholes(one)


class RowSubset(Sequence[Record]):
    """Those of the rows that `numbers` names, in that order."""

    def __init__(self, rows: Sequence[Record], numbers: Sequence[int]) -> None:
        self.rows, self.numbers = rows, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> list[Record]: ...
    def __getitem__(self, at: int | slice) -> Record | list[Record]:
        if isinstance(at, slice):
            return [self.rows[n] for n in self.numbers[at]]
        return self.rows[self.numbers[at]]
