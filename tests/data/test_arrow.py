"""Records through Arrow and back: nothing is lost on the way."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.real import load
from tuneloop.base.records import Message, Record
from tuneloop.data import arrow

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT, lambda v: st.dictionaries(TEXT, v), max_leaves=4
)
CALL = st.builds(
    lambda name, arguments: {"type": "function", "function": {"name": name, "arguments": arguments}},
    TEXT,
    st.dictionaries(TEXT, VALUE, max_size=2),
)
MESSAGE = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    TEXT,
    TEXT,
    st.lists(CALL, max_size=2).map(tuple),
    st.booleans(),
    TEXT,
    TEXT,
)
RECORD = st.builds(
    Record,
    st.lists(MESSAGE, min_size=1, max_size=4).map(tuple),
    TEXT,
    st.integers(0, 2**40),
    st.lists(CALL, max_size=2).map(tuple),
    st.sampled_from(["chat", "text", "label", "preference", "judged"]),
    TEXT,
    st.lists(MESSAGE, max_size=2).map(tuple),
    TEXT,
)


@settings(deadline=None)
@given(st.lists(st.tuples(RECORD, st.integers(1, 100)), max_size=6))
def test_every_record_comes_back(rows: list[tuple[Record, int]]) -> None:
    batch = arrow.batch([r for r, _ in rows], [n for _, n in rows])
    assert batch.schema == arrow.SCHEMA
    batch.validate(full=True)
    assert list(arrow.records(batch)) == rows
    assert list(arrow.records(pa.Table.from_batches([batch]))) == rows
    assert list(arrow.records(batch.slice(1))) == rows[1:]
    assert batch.column("id").to_pylist() == [r.id for r, _ in rows]


@pytest.mark.parametrize(
    "name", ["llamafactory/reason_tool_use_demo_50.jsonl", "llamafactory/dpo_zh_demo.json", "imdb/train.csv"]
)
def test_real_rows_through_a_mapped_file_and_parquet(tmp_path: Path, name: str) -> None:
    rows = [(record, n % 3 + 1) for n, record in enumerate(load(name))]
    arrow.spool(tmp_path / "rows.arrow", arrow.batch([r for r, _ in rows], [n for _, n in rows]))
    table = arrow.mapped(tmp_path / "rows.arrow")
    assert list(arrow.records(table)) == rows
    assert list(arrow.records(table.take(pa.array([7, 2, 5])))) == [rows[7], rows[2], rows[5]]
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=10)
    assert list(arrow.records(pq.read_table(tmp_path / "rows.parquet"))) == rows


def test_more_rows_than_a_batch() -> None:
    rows = [Record((Message("user", str(n)), Message("assistant", "a")), "f", n) for n in range(2 * arrow.BATCH + 7)]
    batch = arrow.batch(rows, [1] * len(rows))
    assert [r for r, _ in arrow.records(pa.Table.from_batches([batch]))] == rows


def test_versions_written_before_names_and_ids_were_kept_still_open() -> None:
    record = Record((Message("user", "q"), Message("assistant", "a", "why")), "f", 3)
    now = arrow.batch([record], [1])
    old = pa.list_(pa.struct(list(arrow.TURN)[:5]))
    columns = [now.column(n).cast(old) if n in ("messages", "rejected") else now.column(n) for n in arrow.SCHEMA.names]
    assert list(arrow.records(pa.RecordBatch.from_arrays(columns, names=arrow.SCHEMA.names))) == [(record, 1)]


def test_what_other_tools_see() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "中"}}}
    record = Record(
        (Message("user", "q", name="Ann"), Message("assistant", "", "think", (call,), False)),
        "f",
        3,
        ({"type": "function"},),
    )
    (row,) = arrow.batch([record], [2]).to_pylist()
    assert row["messages"] == [
        {
            "role": "user",
            "content": "q",
            "reasoning_content": None,
            "tool_calls": None,
            "trained": True,
            "name": "Ann",
            "tool_call_id": None,
            "cut": None,
        },
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "think",
            "tool_calls": '[{"type": "function", "function": {"name": "f", "arguments": {"x": "中"}}}]',
            "trained": False,
            "name": None,
            "tool_call_id": None,
            "cut": None,
        },
    ]
    assert (row["rejected"], row["tools"], row["repeat"], row["line"]) == ([], '[{"type": "function"}]', 2, 3)


def test_what_was_cut_stays_cut_and_older_tables_have_no_such_field() -> None:
    record = Record((Message("user", "q"), Message("assistant", "a", cut=True)), "f", 3)
    table = pa.Table.from_batches([arrow.batch([record], [1])])
    ((back, _),) = arrow.records(table)
    assert [m.cut for m in back.messages] == [False, True]
    assert back.id == record.id != record.without_cuts().id
    later = {"name", "tool_call_id", "cut"}
    assert later == {field.name for field in list(arrow.TURN)[-3:]}, "they came together: older versions have none"
    turns = [{k: v for k, v in turn.items() if k not in later} for turn in table.column("messages").to_pylist()[0]]
    old = pa.list_(pa.struct([field for field in arrow.TURN if field.name not in later]))
    for name, value in (("messages", turns), ("rejected", [])):
        table = table.set_column(table.column_names.index(name), name, pa.array([value], old))
    ((back, _),) = arrow.records(table)
    assert back == record.without_cuts()
