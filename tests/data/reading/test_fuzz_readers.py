"""Any bytes give rows or a coded error, whatever container they pretend to be; nothing else is ever raised.

`make test` tries a few hundred; `make test-slow` 100,000.
"""

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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuneloop.base.errors import DataError
from tuneloop.base.records import LedgerEntry, Record
from tuneloop.data.ledger import words
from tuneloop.data.reading import formats
from tuneloop.recipe.schema import DataFile

ROW = '{"question": "q", "answer": "a"}'
TALK = json.dumps({
    "messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答", "weight": 1}], "tools": "[]",
}, ensure_ascii=False)  # fmt: skip
PAIR = '{"prompt": "q", "chosen": {"from": "gpt", "value": "a"}, "rejected": [{"role": "assistant", "content": "b"}]}'
CSV = "label,review\n" + "".join(f'{n % 2},"so, ""so"" {n}"\n' for n in range(12))
TABLE = pa.table({"question": ["q"] * 5, "answer": ["a"] * 5})


def _arrow(open_sink: Callable[..., pa.ipc.RecordBatchStreamWriter]) -> bytes:
    sink = io.BytesIO()
    with open_sink(sink, TABLE.schema) as out:
        out.write_table(TABLE)
    return sink.getvalue()


def _parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(TABLE, sink)
    return sink.getvalue()


def _zip() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("d/train.csv", CSV)
        out.writestr("d/test.csv", CSV)
    return sink.getvalue()


def _workbook() -> bytes:
    import openpyxl

    book, sink = openpyxl.Workbook(), io.BytesIO()
    for row in (["question", "answer"], ["q", 1.5], ["p", None]):
        book.active.append(row)
    book.save(sink)
    return sink.getvalue()


def _zst() -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(CSV.encode())
    return bytes(sink.getvalue())


SEEDS: dict[str, bytes] = {
    "lines": f"{ROW}\n{TALK}\n{TALK}\n".encode(),
    "pairs": f"{PAIR}\n{PAIR}\n".encode(),
    "array": f"[{ROW}, {TALK},\n {ROW}]".encode(),
    "object": f'{{"version": 1.5, "rows": [{ROW}, {ROW}]}}'.encode(),
    "csv": CSV.encode(),
    "tsv": CSV.replace(",", "\t").encode(),
    "prose": b"One day.\n\nTwo days\nlater.\n\nThree days\nlater.\n",
    "gb18030": f"{TALK}\n".encode("gb18030") * 4,
    "big5": "早餐的種類不多，我覺得一般，下次還會再來\n".encode("big5") * 4,
    "utf-16": f"{TALK}\n".encode("utf-16") * 3,
    "mixed": f"{TALK}\n".encode() * 3 + f"{TALK}\n".encode("gbk") * 3,
    "parquet": _parquet(),
    "arrow": _arrow(pa.ipc.new_file),
    "arrow stream": _arrow(pa.ipc.new_stream),
    "xlsx": _workbook(),
    "zip": _zip(),
    "gz": gzip.compress(CSV.encode()),
    "bz2": bz2.compress(CSV.encode()),
    "xz": lzma.compress(CSV.encode()),
    "zst": _zst(),
}
BITS = [b'"', b"\0", b"\n", b"\r", b"{", b"}", b"[", b"]", b"null", b"\\ud800", b"\xff", b",", b"\t", b"NaN", b"1e999",
        b"\xef\xbb\xbf", b"PK\x03\x04", b"\x1f\x8b\x08", b"-", b"9" * 30]  # fmt: skip
PLACE = st.integers(0, 1 << 16)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), PLACE, st.integers(0, 255)),
        st.tuples(st.just("cut"), PLACE, st.just(0)),
        st.tuples(st.just("repeat"), PLACE, st.integers(1, 64)),
        st.tuples(st.just("drop"), PLACE, st.integers(1, 64)),
        st.tuples(st.just("insert"), PLACE, st.integers(0, len(BITS) - 1)),
    ),
    min_size=1,
    max_size=5,
)


def damaged(data: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    out = bytearray(data)
    for kind, place, value in changes:
        at = place % (len(out) or 1)
        if kind == "flip" and out:
            out[at] = value
        elif kind == "cut":
            del out[at:]
        elif kind == "repeat":
            out[at:at] = out[at : at + value]
        elif kind == "drop":
            del out[at : at + value]
        elif kind == "insert":
            out[at:at] = BITS[value]
    return bytes(out)


def must_be_told(folder: Path, data: bytes) -> None:
    """Rows, each once and in order, or a DataError with words."""
    path = folder / "file"
    path.write_bytes(data)
    file = DataFile(path=str(path))
    known = words()
    try:
        for item in formats.read(file):
            assert isinstance(item, Record | LedgerEntry)
            if isinstance(item, LedgerEntry):
                assert item.action == "dropped"
                assert item.reason in known
                item.detail.encode("utf-8")
            else:
                assert item.messages
                assert len(item.id) == 12
    except DataError as error:
        told = error
        assert told.code.startswith("TL-DATA-")
        assert told.what.encode("utf-8")
        assert told.do


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@pytest.mark.parametrize("name", SEEDS)
def test_the_undamaged_file_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(SEEDS[name])
    assert any(isinstance(item, Record) for item in formats.read(DataFile(path=str(tmp_path / "file"))))


@pytest.mark.parametrize("name", SEEDS)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    _damage(tmp_path, name, 10)


@settings(max_examples=200, **QUIET)
@given(st.binary(max_size=300))
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    must_be_told(_folder(tmp_path_factory), data)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
def test_damaged_files_for_long(tmp_path: Path, name: str) -> None:
    _damage(tmp_path, name, 4500)


@pytest.mark.slow
@settings(max_examples=10_000, **QUIET)
@given(st.sampled_from([b"", *(data[:12] for data in SEEDS.values())]), st.binary(max_size=400))
def test_random_bytes_behind_real_beginnings(
    tmp_path_factory: pytest.TempPathFactory, head: bytes, data: bytes
) -> None:
    must_be_told(_folder(tmp_path_factory), head + data)


def _damage(folder: Path, name: str, examples: int) -> None:
    @settings(max_examples=examples, **QUIET)
    @given(CHANGES)
    def attempt(changes: list[tuple[str, int, int]]) -> None:
        must_be_told(folder, damaged(SEEDS[name], changes))

    attempt()


_FOLDERS: list[Path] = []


def _folder(factory: pytest.TempPathFactory) -> Path:
    if not _FOLDERS:
        _FOLDERS.append(factory.mktemp("fuzz"))
    return _FOLDERS[0]
