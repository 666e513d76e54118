"""Tokenised dialogues as a few arrays, in memory or on disk: 100,000 of them are seven arrays and no list.

    Sequences           a sequence of Sample; each is a view, nothing is copied
    write(folder, …)    a folder of .npy files and samples.json, whole or absent
    open_samples(folder) the same, mapped into memory: opened at once, read as it is used

A folder that was written and then cut or changed in size is refused. Nothing is pickled: what is mapped goes to another
process as the name of its folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from tuneloop.base.errors import DataError
from tuneloop.base.files import folder_atomic, write_atomic
from tuneloop.base.language import t

META = "samples.json"
FORMAT = 1
COLUMNS: dict[str, str] = {
    "ids": "<i4", "trained": "|b1", "starts": "<i8", "labels": "<i4", "ended": "|b1", "row": "<i4", "names": "|S12",
}  # fmt: skip
"""Array -> type on disk. `ids` and `trained` have one entry a token, `starts` one a sample and one more."""


SPELLED = "spelled"


class Unsaid(NamedTuple):
    """An answer that is not trained, since the template cannot say it. `row` is its record, `turn` counts from 1.

    `what` goes with it: a "call", a "thought"; "alone" is a thought without an answer, "empty" neither. `fuller` is the
    name of a template that can say it, "" where none is known.

    With `SPELLED` it is a turn (0: the tools) that is there, with the text of a control token in it: `fuller` is that
    token, which is not meant.
    """

    row: int
    turn: int
    what: str
    fuller: str


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One training sequence. `ids` int32 [length]; `trained` bool [length], true where the token carries a label."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    record: str
    ended: bool
    """Every trained turn ends with a token that stops generation; one whose end was cut off needs none."""

    @property
    def labels(self) -> int:
        """Label tokens. The first token of a sequence is never predicted, so it never counts."""
        return int(np.count_nonzero(self.trained[1:]))


@dataclass(frozen=True, slots=True, eq=False)
class Sequences(Sequence[Sample]):
    """Samples behind each other. Of n samples with `tokens` tokens in all:

    ids int32 [tokens]; trained bool [tokens]; starts int64 [n + 1], sample k is ids[starts[k] : starts[k + 1]]; labels
    int32 [n], its label tokens; ended bool [n]; row int32 [n], which of the `records` records it was made from, counted
    from 0; names bytes [n], those records' ids. `folder` is where they are mapped from, if they are. `unsaid` are the
    answers of the records that no sample trains; it is known where samples are made, and not kept with them.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    starts: NDArray[np.int64]
    labels: NDArray[np.int32]
    ended: NDArray[np.bool_]
    row: NDArray[np.int32]
    names: NDArray[np.bytes_]
    records: int
    folder: Path | None = None
    unsaid: tuple[Unsaid, ...] = ()

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each sample, int32 [n]."""
        return np.diff(self.starts).astype(np.int32)

    @property
    def tokens(self) -> int:
        """Tokens of all samples."""
        return int(self.starts[-1])

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequences: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequences:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = index % len(self)
        begin, end = self.starts[index : index + 2].tolist()
        return Sample(self.ids[begin:end], self.trained[begin:end], self.names[index].decode(), bool(self.ended[index]))

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is not None:
            return open_samples, (self.folder,)
        return Sequences, (*(getattr(self, name) for name in COLUMNS), self.records)

    def take(self, index: NDArray[np.integer[Any]]) -> Sequences:
        """The samples at `index`, int [m], in that order and in memory. `row` still counts the same records."""
        index = np.asarray(index, np.int64)
        begins, ends = self.starts[index].tolist(), self.starts[index + 1].tolist()
        parts = list(zip(begins, ends, strict=True))
        return Sequences(
            ids=np.concatenate([self.ids[:0], *(self.ids[a:b] for a, b in parts)]),
            trained=np.concatenate([self.trained[:0], *(self.trained[a:b] for a, b in parts)]),
            starts=starts_of(self.lengths[index]),
            labels=self.labels[index],
            ended=self.ended[index],
            row=self.row[index],
            names=self.names[index],
            records=self.records,
        )

    @staticmethod
    def concatenate(parts: Iterable[Sequences]) -> Sequences:
        """The samples of all parts, as if their records had come in one batch."""
        every = list(parts)
        if len(every) == 1:
            return every[0]
        shifts = np.cumsum([0, *(p.records for p in every)])
        none = _empty()
        return Sequences(
            ids=np.concatenate([none.ids, *(p.ids for p in every)]),
            trained=np.concatenate([none.trained, *(p.trained for p in every)]),
            starts=starts_of(np.concatenate([none.labels, *(p.lengths for p in every)])),
            labels=np.concatenate([none.labels, *(p.labels for p in every)]),
            ended=np.concatenate([none.ended, *(p.ended for p in every)]),
            row=np.concatenate([none.row, *(p.row + s for p, s in zip(every, shifts, strict=False))]).astype(np.int32),
            names=np.concatenate([none.names, *(p.names for p in every)]),
            records=int(shifts[-1]),
            unsaid=tuple(u._replace(row=u.row + int(s)) for p, s in zip(every, shifts, strict=False) for u in p.unsaid),
        )

    @staticmethod
    def of(samples: Sequence[Sample]) -> Sequences:
        """The same samples in arrays; each stands for a record of its own. Samples come back as they are."""
        if isinstance(samples, Sequences):
            return samples
        none = _empty()
        trained = np.concatenate([none.trained, *(s.trained for s in samples)])
        starts = starts_of(np.array([len(s.ids) for s in samples], np.int64))
        return Sequences(
            ids=np.concatenate([none.ids, *(s.ids for s in samples)]),
            trained=trained,
            starts=starts,
            labels=labels_of(trained, starts),
            ended=np.array([s.ended for s in samples], np.bool_),
            row=np.arange(len(samples), dtype=np.int32),
            names=np.array([s.record for s in samples], "S12"),
            records=len(samples),
        )

    def write(self, folder: Path) -> Sequences:
        """Write them to `folder` and give them back mapped from there. See `write`."""
        return write(folder, [self])


def starts_of(lengths: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Where each of the samples begins, and where the last one ends.

    >>> starts_of(np.array([3, 0, 2])).tolist()
    [0, 3, 3, 5]
    """
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def labels_of(trained: NDArray[np.bool_], starts: NDArray[np.int64]) -> NDArray[np.int32]:
    """Label tokens of each sample; its first token is never predicted.

    >>> labels_of(np.array([True, True, False, True]), np.array([0, 3, 3, 4])).tolist()
    [1, 0, 0]
    """
    before = np.zeros(len(trained) + 1, np.int64)
    np.cumsum(trained, out=before[1:])
    some = starts[1:] > starts[:-1]
    first = np.zeros(len(starts) - 1, np.int64)
    first[some] = trained[starts[:-1][some]]
    return (before[starts[1:]] - before[starts[:-1]] - first).astype(np.int32)


def _empty() -> Sequences:
    arrays: dict[str, Any] = {name: np.zeros(1 if name == "starts" else 0, kind) for name, kind in COLUMNS.items()}
    return Sequences(**arrays, records=0)


def write(folder: Path, parts: Iterable[Sequences]) -> Sequences:
    """Write parts behind each other to `folder`, one part in memory at a time; the whole, mapped, comes back.

    It is made beside its place and renamed: whatever was there stays until then, and is replaced.
    """
    folder = Path(os.path.abspath(folder))
    with folder_atomic(folder, alone=False) as draft:
        _write_columns(draft, parts)
    return open_samples(folder)


def _write_columns(folder: Path, parts: Iterable[Sequences]) -> None:
    files = {name: (folder / f"{name}.npy").open("w+b") for name in COLUMNS}
    counts = dict.fromkeys(COLUMNS, 0)
    records = 0
    try:
        for name, file in files.items():
            _header(file, name, 0)
        files["starts"].write(np.zeros(1, COLUMNS["starts"]).tobytes())
        counts["starts"] = 1
        for part in parts:
            own = {name: getattr(part, name) for name in COLUMNS}
            own |= {"starts": part.starts[1:] + counts["ids"], "row": part.row + records}
            for name, values in own.items():
                files[name].write(np.ascontiguousarray(values, COLUMNS[name]).tobytes())
                counts[name] += len(values)
            records += part.records
        for name, file in files.items():
            file.seek(0)
            _header(file, name, counts[name])  # numpy leaves room for a longer length, so it stays as long as it was
            file.flush()
            os.fsync(file.fileno())
    finally:
        for file in files.values():
            file.close()
    meta = {
        "format": FORMAT, "records": records, "samples": counts["labels"], "tokens": counts["ids"],
        "bytes": {name: (folder / f"{name}.npy").stat().st_size for name in COLUMNS},
    }  # fmt: skip
    write_atomic(folder / META, json.dumps(meta, indent=2), sync=True)


def _header(file: BinaryIO, name: str, length: int) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": COLUMNS[name], "fortran_order": False, "shape": (length,)})


def open_samples(folder: Path) -> Sequences:
    """The samples of a folder that `write` made, mapped into memory.

    Raises TL-DATA-SAMPLES where the folder is none, of another format, or not as long as it was written.
    """
    folder = Path(folder)
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            raise ValueError(t("its format is {got}, wanted is {wanted}", got=meta["format"], wanted=FORMAT))
        arrays: dict[str, Any] = {name: _mapped(folder / f"{name}.npy", name, meta) for name in COLUMNS}
        n, starts = int(meta["samples"]), arrays["starts"]
        if starts[0] != 0 or starts[n] != meta["tokens"] or (n and np.diff(starts).min() < 0):
            raise ValueError(t("{file} does not fit the other files", file="starts.npy"))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise DataError("TL-DATA-SAMPLES", where=str(folder), error=words) from error
    return Sequences(**arrays, records=int(meta["records"]), folder=folder)


def _mapped(file: Path, name: str, meta: dict[str, Any]) -> NDArray[Any]:
    size, wanted = file.stat().st_size, meta["bytes"][name]
    if size != wanted:
        raise ValueError(t("{file} has {size:,} bytes, not {wanted:,}", file=file.name, size=size, wanted=wanted))
    length = meta["tokens"] if name in {"ids", "trained"} else meta["samples"] + (name == "starts")
    # An empty file cannot be mapped. asarray: a memmap is slow to slice, the plain array over it is not.
    array = np.asarray(np.load(file, mmap_mode="r" if length else None, allow_pickle=False))
    if array.shape != (length,) or array.dtype != np.dtype(COLUMNS[name]):
        raise ValueError(t("{file} does not fit the other files", file=file.name))
    return array
