"""Columnar files: Parquet, and Arrow as a file or as a stream (what `datasets` saves)."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from tuneloop.base.errors import DataError
from tuneloop.data.reading.containers import Blob

BATCH = 1024


def kind(head: bytes) -> str:
    """The columnar format by its magic bytes: "parquet", "arrow" (a file), "arrow stream", or ""."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "arrow"
    # a stream begins with a marker and the length of the schema: encapsulated messages of the Arrow format
    return "arrow stream" if head.startswith(b"\xff\xff\xff\xff") and head[4:8] not in (b"", b"\0\0\0\0") else ""


@contextmanager
def _format_errors(blob: Blob, container: str) -> Iterator[None]:
    """Raise pyarrow's errors as TL-DATA-PARQUET or TL-DATA-ARROW."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, ValueError, OSError) as error:
        code = "TL-DATA-PARQUET" if container == "parquet" else "TL-DATA-ARROW"
        raise DataError(code, where=blob.where, error=str(error)) from error


def _batches(blob: Blob, container: str, size: int) -> Generator[Any, None, None]:
    """The schema's names first, then record batches."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = pa.OSFile(os.fspath(blob.path)) if blob.is_plain_file else pa.BufferReader(blob.read_bytes())
    with source:
        if container == "parquet":
            with pq.ParquetFile(source) as file:
                yield file.schema_arrow.names
                yield from file.iter_batches(batch_size=size)
        elif container == "arrow":
            with pa.ipc.open_file(source) as file:
                yield file.schema.names
                yield from (file.get_batch(n) for n in range(file.num_record_batches))
        else:
            with pa.ipc.open_stream(source) as stream:
                yield stream.schema.names
                yield from stream


def head(blob: Blob, container: str, count: int) -> tuple[tuple[str, ...], list[Any]]:
    """The columns' names and the first rows. Raises TL-DATA-PARQUET or TL-DATA-ARROW."""
    with _format_errors(blob, container):
        batches = _batches(blob, container, count)
        names = tuple(next(batches))
        first: list[Any] = []
        for batch in batches:
            batch.validate(full=True)  # pyarrow trusts what it reads: wrong offsets would crash the process
            first += _rows(batch.slice(0, count - len(first)))
            if len(first) >= count:
                break
        batches.close()
        return names, first


def rows(blob: Blob, container: str) -> Iterator[tuple[int, Any]]:
    """Every row with its number. Raises TL-DATA-PARQUET or TL-DATA-ARROW."""
    number = 0
    with _format_errors(blob, container):
        batches = _batches(blob, container, BATCH)
        next(batches)
        for batch in batches:
            batch.validate(full=True)
            for at in range(0, batch.num_rows, BATCH):
                for row in _rows(batch.slice(at, BATCH)):
                    number += 1
                    yield number, row


def _rows(batch: Any) -> list[dict[str, Any]]:
    """The rows of a record batch as dicts, nested ones without the null fields that Arrow adds for other rows' keys."""
    import pyarrow as pa

    nested = [field.name for field in batch.schema if pa.types.is_nested(field.type)]
    rows: list[dict[str, Any]] = batch.to_pylist(maps_as_pydicts="lossy")
    for row in rows if nested else ():
        for name in nested:
            row[name] = _without_nulls(row[name])
    return rows


def _without_nulls(cell: Any) -> Any:
    if isinstance(cell, dict):
        return {key: _without_nulls(inner) for key, inner in cell.items() if inner is not None}
    return [_without_nulls(inner) for inner in cell] if isinstance(cell, list) else cell
