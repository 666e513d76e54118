"""Records as Arrow tables: the one schema of a dataset on disk.

`messages` is a list of {role, content, reasoning_content, tool_calls, trained}, the form that other tools read;
`tool_calls` and `tools` are JSON text, since Arrow cannot hold arguments of any shape.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tuneloop.records import Message, Record

_TEXT = pa.string()
TURN = pa.struct([("role", _TEXT), ("content", _TEXT), ("reasoning_content", _TEXT), ("tool_calls", _TEXT),
                  ("trained", pa.bool_())])  # fmt: skip
SCHEMA = pa.schema([("id", _TEXT), ("kind", _TEXT), ("file", _TEXT), ("line", pa.int64()), ("repeat", pa.int32()),
                    ("label", _TEXT), ("parent", _TEXT), ("messages", pa.list_(TURN)), ("rejected", pa.list_(TURN)),
                    ("tools", _TEXT)])  # fmt: skip
BATCH = 1024
"""Rows that are turned into objects at once."""


def _turn(m: Message) -> dict[str, Any]:
    calls = json.dumps(m.tool_calls, ensure_ascii=False) if m.tool_calls else None
    return {"role": m.role, "content": m.content, "reasoning_content": m.reasoning or None, "tool_calls": calls,
            "trained": m.trained}  # fmt: skip


def _message(turn: dict[str, Any]) -> Message:
    calls = tuple(json.loads(turn["tool_calls"])) if turn["tool_calls"] else ()
    return Message(turn["role"], turn["content"], turn["reasoning_content"] or "", calls, turn["trained"])


def batch(records: Sequence[Record], repeats: Sequence[int]) -> pa.RecordBatch:
    """The records as one batch; `repeats` says how often each is used an epoch."""
    rows = [
        {
            "id": r.id, "kind": r.kind, "file": r.file, "line": r.line, "repeat": repeat, "label": r.label,
            "parent": r.parent, "messages": [_turn(m) for m in r.messages], "rejected": [_turn(m) for m in r.rejected],
            "tools": json.dumps(r.tools, ensure_ascii=False) if r.tools else "",
        }
        for r, repeat in zip(records, repeats, strict=True)
    ]  # fmt: skip
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def records(table: pa.Table | pa.RecordBatch) -> Iterator[tuple[Record, int]]:
    """Every row as (record, repeat)."""
    for at in range(0, table.num_rows, BATCH):
        for row in table.slice(at, BATCH).to_pylist():
            yield _record(row), row["repeat"]


def _record(row: dict[str, Any]) -> Record:
    return Record(
        messages=tuple(_message(m) for m in row["messages"]),
        file=row["file"],
        line=row["line"],
        tools=tuple(json.loads(row["tools"])) if row["tools"] else (),
        kind=row["kind"],
        label=row["label"],
        rejected=tuple(_message(m) for m in row["rejected"]),
        parent=row["parent"],
    )


def spool(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Write an Arrow file that can be memory-mapped."""
    with pa.OSFile(os.fspath(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for one in batches:
            writer.write_batch(one)


def mapped(path: Path) -> pa.Table:
    """The table that `spool` wrote, not read until it is looked at."""
    return pa.ipc.open_file(pa.memory_map(os.fspath(path))).read_all()
