"""The same rows out of every container and every compression."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuneloop.base.errors import DataError
from tuneloop.base.records import Record
from tuneloop.data.reading import containers, formats
from tuneloop.data.reading.containers import Blob, members, open_bytes
from tuneloop.recipe.schema import DataFile

ROWS = [{"question": f"问题 {n}？", "answer": f'so "{n}",\nor not'} for n in range(2500)]


def _lines() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def _csv(delimiter: str) -> bytes:
    import csv

    sink = io.StringIO()
    out = csv.DictWriter(sink, list(ROWS[0]), delimiter=delimiter)
    out.writeheader()
    out.writerows(ROWS)
    return sink.getvalue().encode()


def _parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


def _arrow(opened: Callable[..., pa.ipc.RecordBatchStreamWriter]) -> bytes:
    sink, table = io.BytesIO(), pa.Table.from_pylist(ROWS)
    with opened(sink, table.schema) as out:
        out.write_table(table, max_chunksize=999)
    return sink.getvalue()


def _workbook() -> bytes:
    import openpyxl

    book, sink = openpyxl.Workbook(write_only=True), io.BytesIO()
    sheet = book.create_sheet("rows")
    for row in [list(ROWS[0]), *(list(row.values()) for row in ROWS)]:
        sheet.append(row)
    book.save(sink)
    return sink.getvalue()


MADE: dict[str, Callable[[], bytes]] = {
    "jsonl": _lines,
    "json": lambda: json.dumps(ROWS).encode(),
    "object": lambda: json.dumps({"version": 1, "rows": ROWS}).encode(),
    "csv": lambda: _csv(","),
    "tsv": lambda: _csv("\t"),
    "parquet": _parquet,
    "arrow": lambda: _arrow(pa.ipc.new_file),
    "arrow stream": lambda: _arrow(pa.ipc.new_stream),
    "xlsx": _workbook,
}


def _zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return bytes(sink.getvalue())


def _zip(data: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("rows", data)
    return sink.getvalue()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, "gz": gzip.compress, "gz twice": lambda d: gzip.compress(d[:999]) + gzip.compress(d[999:]),
    "bz2": bz2.compress, "xz": lzma.compress, "zst": _zst, "zip": _zip, "zip of gz": lambda d: _zip(gzip.compress(d)),
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> dict[str, bytes]:
    return {name: make() for name, make in MADE.items()}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("name", MADE)
def test_the_same_rows_out_of_all(tmp_path: Path, data: dict[str, bytes], name: str, packed: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(PACK[packed](data[name]))
    file = DataFile(path=str(path))
    (source,) = formats.sources(file)
    assert source.guess.container == name
    assert source.path == path
    inside = packed.split()[-1] if packed else ""
    assert source.guess.compression == {"zip": "", "twice": "gz"}.get(inside, inside)
    records = list(formats.read(file, [source]))
    assert all(isinstance(item, Record) for item in records)
    said = [[m.content for m in r.messages] for r in records if isinstance(r, Record)]
    assert said == [[row["question"], row["answer"]] for row in ROWS]
    assert len({r.line for r in records}) == len(ROWS)


def test_bytes_for_whoever_hashes_them(tmp_path: Path, data: dict[str, bytes]) -> None:
    path = tmp_path / "file"
    path.write_bytes(PACK["zip of gz"](data["csv"]))
    assert members(path) == ("rows",)
    assert open_bytes(path, "rows").read() == data["csv"]
    path.write_bytes(gzip.compress(data["csv"]))
    assert members(path) == ()
    assert open_bytes(path).read() == data["csv"]


def test_what_must_be_whole_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, bytes]
) -> None:
    monkeypatch.setattr(containers, "WHOLE", 1000)
    path = tmp_path / "file"
    for content in (data["object"], gzip.compress(data["object"]), gzip.compress(data["parquet"])):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            formats.sources(DataFile(path=str(path)))
        assert caught.value.code == "TL-DATA-WHOLE"
    for name in ("json", "jsonl", "csv", "parquet", "arrow"):
        path.write_bytes(data[name])
        assert len(list(formats.read(DataFile(path=str(path))))) == len(ROWS)


@pytest.mark.parametrize("kind", ["gz", "zst", "bz2", "xz"])
def test_a_download_that_stopped_halfway(tmp_path: Path, kind: str, data: dict[str, bytes]) -> None:
    packed = PACK[kind](data["jsonl"])
    path = tmp_path / "file"
    for size in (len(packed) // 2, len(packed) - 3):
        path.write_bytes(packed[:size])
        with pytest.raises(DataError) as caught:
            list(formats.read(DataFile(path=str(path))))
        assert caught.value.code == "TL-DATA-ARCHIVE"
        assert caught.value.where == str(path)


def test_handles_are_closed(tmp_path: Path, data: dict[str, bytes]) -> None:
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(data["jsonl"]))
    with Blob(path, compression="gz").open() as handle:
        handle.read(10)
    assert handle.closed
