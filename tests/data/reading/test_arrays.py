"""JSON arrays read as a stream give what `json.load` gives, and its errors at the same places."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.base.errors import DataError
from tuneloop.data.reading import arrays, containers, encodings
from tuneloop.data.reading.containers import Blob

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def elements(tmp_path: Path, text: str | bytes, chunk: int = 1 << 17) -> list[Any]:
    path = tmp_path / "a"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    original = encodings.chunks
    encodings.chunks = lambda blob, encoding, size=chunk: original(blob, encoding, chunk)  # type: ignore[assignment]
    try:
        return list(arrays.elements(Blob(path), "utf-8"))
    finally:
        encodings.chunks = original


@given(st.lists(VALUES, max_size=6), st.sampled_from([1, 2, 3, 7, 1000]), st.sampled_from([None, 1]), st.booleans())
def test_any_array_in_pieces_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], chunk: int, indent: int | None, plain: bool
) -> None:
    text = json.dumps(values, ensure_ascii=plain, indent=indent)
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    assert elements(tmp_path_factory.mktemp("a"), text, chunk) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    ["[1, 2", "[1,, 2]", "[1 2]", "[1,]", "[1] x", "[", '["a', "[{'a': 1}]", '[\n {"a": 1,}\n]', '["\\u12"]', "[nu",
     '[1, {"a": "b\n"}]', "[nul]", "[" * 100_000, "[" + "9" * 5000 + "]", '[{"a": 1}\n{"a": 2}]'],
)  # fmt: skip
@pytest.mark.parametrize("chunk", [1, 5, 1 << 17])
def test_faults_have_the_line_and_column_of_the_whole_document(tmp_path: Path, text: str, chunk: int) -> None:
    with pytest.raises(DataError) as caught:
        elements(tmp_path, text, chunk)
    assert caught.value.code == "TL-DATA-JSON"
    where = str(tmp_path / "a")
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        where += f":{error.lineno}:{error.colno}"
    except (ValueError, RecursionError):
        pass
    assert caught.value.where == where


def test_rows_before_the_fault_come_first(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("[1, 2, oops]")
    found = arrays.elements(Blob(tmp_path / "a"), "utf-8")
    assert (next(found), next(found)) == (1, 2)
    with pytest.raises(DataError):
        next(found)


def test_a_fault_in_a_document_too_large_to_be_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "WHOLE", 10)
    with pytest.raises(DataError) as caught:
        elements(tmp_path, '[{"a": 1}, {"a": 2}, oops]')
    assert (caught.value.code, caught.value.where) == ("TL-DATA-JSON", f"{tmp_path / 'a'}:3")


def test_memory_is_that_of_a_row_and_not_of_the_file(tmp_path: Path) -> None:
    row = json.dumps({"text": "a" * 1000})
    (tmp_path / "a").write_text("[" + ",\n".join([row] * 30_000) + "]")  # 30 MB
    tracemalloc.start()
    assert sum(1 for _ in arrays.elements(Blob(tmp_path / "a"), "utf-8")) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_row_above_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "ROW", 1000)
    assert elements(tmp_path, json.dumps(["a" * 900, 1]), 64) == ["a" * 900, 1]
    with pytest.raises(DataError) as caught:
        elements(tmp_path, json.dumps(["a", "b" * 5000]), 64)
    assert (caught.value.code, caught.value.where) == ("TL-DATA-ROW-LONG", f"{tmp_path / 'a'}:2")
