"""The same rows, whatever they lie in, are the same records with the same ids and tokens."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import byte_tokenizer
from tests.made import jsonl
from tuneloop.base.errors import DataError
from tuneloop.base.records import Record
from tuneloop.data.cleaning.clean import clean
from tuneloop.data.reading import formats
from tuneloop.data.reading.sniff import look
from tuneloop.data.tokens.encode import tokenize
from tuneloop.recipe.schema import DataFile

Rows = list[dict[str, Any]]
WHOLE = (
    "{{ (tools | tojson) if tools else '' }}{% for m in messages %}{{ '<|im_start|>' + (m | tojson) + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)
"""A template that writes everything of a turn."""


def tool(name: str, **properties: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    return {"type": "function", "function": {"name": name, "parameters": {**schema, "required": list(properties)[:1]}}}


def call(name: str, number: int, **arguments: Any) -> dict[str, Any]:
    made = {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [made]}


def turns(*said: Any, roles: tuple[str, str] = ("user", "assistant")) -> list[dict[str, Any]]:
    return [turn if isinstance(turn, dict) else {"role": roles[n % 2], "content": turn} for n, turn in enumerate(said)]


TOOLS: Rows = [
    {"messages": turns("Weather in Bonn?", call("weather", 1, city="Bonn"), {"role": "tool", "tool_call_id": "c1",
                       "content": "3"}, {"role": "assistant", "content": "3 degrees."}),
     "tools": [tool("weather", city="string")]},
    {"messages": turns("What time is it?", call("clock", 2, zone="UTC", format={"hours": 24}), {"role": "tool",
                       "tool_call_id": "c2", "content": "12:00"}, {"role": "assistant", "content": "Noon."}),
     "tools": [tool("clock", zone="string", format="object"), tool("weather", city="string")]},
    {"messages": turns("Ping?", call("ping", 3), {"role": "tool", "name": "ping", "content": "pong"},
                       {"role": "assistant", "content": "Pong.", "reasoning_content": "It answered."}),
     "tools": [tool("ping")]},
    {"messages": turns("Pay 2.5", call("pay", 4, amount=2.5), {"role": "tool", "content": "ok"},
                       {"role": "assistant", "content": "Paid."}), "tools": None},
    {"messages": turns("Pay 2", call("pay", 5, amount=2, to=["Ann", None]), {"role": "tool", "content": "ok"},
                       {"role": "assistant", "content": "Paid.", "weight": 1}), "tools": None},
    {"messages": turns("Hello?", {"role": "assistant", "content": "No.", "weight": 0}, "Again!", "Hello."), "tools": None},
    {"messages": turns("Null?", call("f", 6, a=1, b=None), {"role": "tool", "content": "ok"}, "-", "x"), "tools": None},
]  # fmt: skip
FLAT: Rows = [
    {"conversation_id": n, "turn_index": k, "role": role, "content": f"{role} {n} {k}"}
    for n in range(12) for k, role in enumerate(("user", "assistant") * (1 + n % 2))
]  # fmt: skip
ONE: Rows = turns("How are you?", "Fine.", "And now?", "Fine, too.")
SETS: dict[str, tuple[Rows, str, int]] = {
    "tools": (TOOLS, "chat", 7),
    "flat": (FLAT, "chat", 12),
    "flat, mixed": (sorted(FLAT, key=lambda row: (row["turn_index"], row["conversation_id"])), "chat", 12),
    "one dialogue": (ONE, "chat", 1),
    "sharegpt": ([{"conversations": [{"from": "human", "value": f"q{n}", "weight": None},
                                     {"from": "gpt", "value": f"a{n}", "weight": n % 2}]} for n in range(6)], "chat", 3),
    "emollm": ([{"conversation": [{"system": "s", "input": f"q{n}", "output": f"a{n}"},
                                  {"input": "more", "output": "b"}]} for n in range(4)], "chat", 4),
    "pairs": ([{"text_a": f"a{n}", "text_b": f"b{n}", "label": n % 2} for n in range(20)], "label", 20),
    "preference": ([{"prompt": f"q{n}", "chosen": {"role": "assistant", "content": f"a{n}", "thinking": "so"},
                     "rejected": {"role": "assistant", "content": "b"}} for n in range(4)], "preference", 4),
    "thoughts": ([{"question": f"q{n}", "thinking": "hm" if n % 2 else None, "answer": f"a{n}"} for n in range(4)],
                 "chat", 4),
    "numbers": ([{"question": f"q{n}", "answer": n} for n in range(4)], "chat", 4),
    "0 and 1": ([{"question": f"q{n}", "answer": f"a{n}", "label": n % 2} for n in range(4)], "chat", 4),
    "true and false": ([{"question": f"q{n}", "answer": f"a{n}", "label": n % 2 == 0} for n in range(4)], "chat", 4),
    "TRL's KTO": ([{"prompt": f"q{n}", "completion": f"a{n}", "label": n % 2 == 0} for n in range(4)], "judged", 4),
    "bare lists": ([{"messages": turns(f"q{n}", f"a{n}", "p", "b")} for n in range(4)], "chat", 4),
}  # fmt: skip


def _table(rows: Rows) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _csv(path: Path, rows: Rows) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(names)
        for row in rows:
            cells = [row.get(name) for name in names]
            writer.writerow(["" if c is None else c if isinstance(c, str) else json.dumps(c) for c in cells])


def _arrow(path: Path, rows: Rows) -> None:
    table = _table(rows)
    with path.open("wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table, max_chunksize=3)


def _stream(path: Path, rows: Rows) -> None:
    table = _table(rows)
    with path.open("wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table, max_chunksize=2)


def _saved(path: Path, rows: Rows) -> None:
    """What `datasets` saves: a folder with an Arrow stream and the list of its files."""
    path.mkdir()
    _stream(path / "data-00000-of-00001.arrow", rows)
    (path / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    (path / "dataset_info.json").write_text("{}")


CONTAINERS: dict[str, Callable[[Path, Rows], object]] = {
    "json": lambda path, rows: path.write_text(json.dumps(rows), encoding="utf-8"),
    "jsonl": jsonl,
    "csv": _csv,
    "parquet": lambda path, rows: pq.write_table(_table(rows), path),
    "arrow": _arrow,
    "arrow stream": _stream,
    "saved": _saved,
}


def read(path: Path) -> list[Record]:
    items = [item for item in formats.read(DataFile(path=str(path))) if isinstance(item, Record)]
    return [record for item in items if (record := clean(item)[0])]


@pytest.mark.parametrize("name", SETS)
def test_the_same_rows_are_the_same_records_and_tokens(name: str, tmp_path: Path) -> None:
    rows, kind, count = SETS[name]
    tokenizer = byte_tokenizer(WHOLE, eos_token="<|im_end|>")
    found = {}
    for container, write in CONTAINERS.items():
        path = tmp_path / f"rows.{container.replace(' ', '-')}"
        write(path, rows)
        records = read(path)
        assert {r.kind for r in records} == {kind}, container
        tokens = [sample.ids.tolist() for sample in tokenize(tokenizer, records)]
        found[container] = ([r.messages for r in records], [r.tools for r in records], [r.id for r in records], tokens)
        assert len(records) == count, container
    for container, one in found.items():
        assert one == found["json"], container


def test_bare_lists_and_lists_one_level_down_are_the_same_dialogues(tmp_path: Path) -> None:
    rows, _, _ = SETS["bare lists"]
    wanted = [r.id for r in read(jsonl(tmp_path / "plain.jsonl", rows))]
    bare = [row["messages"] for row in rows]
    written = {
        "lines": "\n".join(map(json.dumps, bare)), "array": json.dumps(bare), "pretty": json.dumps(bare, indent=2),
        "object": json.dumps({"version": 1, "data": bare}), "named": json.dumps({"conversations": bare}),
        "nested": "\n".join(json.dumps({"messages": [one]}) for one in bare),
    }  # fmt: skip
    for name, text in written.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert [r.id for r in read(tmp_path / name)] == wanted, name


@pytest.mark.parametrize("names", [
    ("conversation_id", "role", "content"), ("session_id", "from", "value"), ("dialogue_id", "speaker", "text"),
    ("会话ID", "角色", "内容"), ("会话编号", "发送者", "消息内容"), ("对话", "发言人", "内容"), ("id", "role", "content"),
    ("Conversation", "Role", "Content"),
])  # fmt: skip
def test_one_turn_a_row_under_its_usual_names(names: tuple[str, str, str], tmp_path: Path) -> None:
    rows = [{names[0]: f"d{row['conversation_id']}", names[1]: row["role"], names[2]: row["content"]} for row in FLAT]
    for container in ("jsonl", "csv", "parquet"):
        CONTAINERS[container](tmp_path / container, rows)
        records = read(tmp_path / container)
        assert [len(r.messages) for r in records] == [2 + 2 * (n % 2) for n in range(12)], container
        assert records[1].messages[2].content == "user 1 2"


def test_chinese_speakers_and_times_newest_first(tmp_path: Path) -> None:
    rows = [{"工单号": f"W{n}", "发送时间": f"2026-01-02 10:0{k}:00", "发送人": ("客户", "客服")[k % 2],
             "消息内容": f"{n}/{k}"} for n in range(3) for k in range(4)]  # fmt: skip
    _csv(tmp_path / "f.csv", rows[::-1])
    records = read(tmp_path / "f.csv")
    assert sorted([m.content for m in r.messages] for r in records) == [
        [f"{n}/{k}" for k in range(4)] for n in range(3)
    ]
    assert [m.role for m in records[0].messages] == ["user", "assistant"] * 2


def test_who_is_who_may_be_said(tmp_path: Path) -> None:
    rows = [{"群": n // 4, "谁": ("张三", "小王")[n % 2], "说": f"m{n}"} for n in range(12)]
    path = jsonl(tmp_path / "f.jsonl", rows)
    columns = {"role": "谁", "content": "说", "conversation": "群"}
    file = DataFile.model_validate(
        {"path": str(path), "columns": columns, "speakers": {"张三": "user", "小王": "assistant"}}
    )
    records = [item for item in formats.read(file) if isinstance(item, Record)]
    assert [[m.role for m in r.messages] for r in records] == [["user", "assistant"] * 2] * 3
    nested = jsonl(
        tmp_path / "n.jsonl",
        [{"chat": [{"谁": "张三", "说": "q", "想": ""}, {"谁": "小王", "说": "a", "想": "w"}]}] * 2,
    )
    columns = {"messages": "chat", "role": "谁", "content": "说", "reasoning": "想"}
    file = DataFile.model_validate(
        {"path": str(nested), "columns": columns, "speakers": {"张三": "user", "小王": "assistant"}}
    )
    record = next(item for item in formats.read(file) if isinstance(item, Record))
    assert [(m.role, m.content, m.reasoning) for m in record.messages] == [("user", "q", ""), ("assistant", "a", "w")]


def test_marks_thoughts_and_calls_of_a_row_that_is_one_turn(tmp_path: Path) -> None:
    calls = [{"name": "f", "arguments": {"x": 1}}]
    rows: Rows = [
        {"dialogue_id": 1, "role": "user", "content": "q"},
        {"dialogue_id": 1, "role": "assistant", "content": "", "tool_calls": calls, "thinking": "hm"},
        {"dialogue_id": 1, "role": "tool", "content": "3", "name": "f"},
        {"dialogue_id": 1, "role": "assistant", "content": "no", "train": 0, "zeta": "x"},
        {"dialogue_id": 1, "role": "user", "content": "again"},
        {"dialogue_id": 1, "role": "assistant", "content": "3"},
    ]
    for container, write in CONTAINERS.items():
        write(tmp_path / container, rows)
        (item,) = (one for one in formats.read(DataFile(path=str(tmp_path / container))) if isinstance(one, Record))
        assert [m.trained for m in item.messages] == [True, True, True, False, True, True], container
        assert (item.messages[1].reasoning, item.messages[2].name) == ("hm", "f")
        assert item.messages[1].tool_calls[0]["function"] == calls[0]
        assert [(n.reason, n.detail) for n in item.notes] == [("turn keys not used", "zeta")], container


@pytest.mark.parametrize("container", CONTAINERS)
def test_many_turns_without_a_dialogue_are_refused_with_advice(container: str, tmp_path: Path) -> None:
    rows = turns(*(f"m{n}" for n in range(60)))
    CONTAINERS[container](tmp_path / "f", rows)
    for made in (rows, [{"role": "system", "content": "s"}, *turns("q", "a")] * 2):
        if made is not rows:
            CONTAINERS[container](tmp_path / "g", made)
        path = tmp_path / ("f" if made is rows else "g")
        with pytest.raises(DataError) as caught:
            read(path)
        assert caught.value.code == "TL-DATA-TURNS"
        assert str(path) in caught.value.where
        assert "conversation: your_id" in caught.value.do


@pytest.mark.parametrize("row", [
    {"role": "user", "content": "t"}, {"from": "human", "content": "t"}, {"from": "a@b.c", "content": "t", "to": "d@e.f"},
    {"role": "poet", "content": "t"},
])  # fmt: skip
def test_who_speaks_beside_content_is_never_a_text(row: dict[str, Any], tmp_path: Path) -> None:
    path = jsonl(tmp_path / "f.jsonl", [row] * 60)
    with pytest.raises(DataError) as caught:
        formats.sources(DataFile(path=str(path)))
    assert caught.value.code == "TL-DATA-TURNS"
    assert {item.kind for item in formats.read(DataFile(path=str(path), task="text")) if isinstance(item, Record)} == {
        "text"
    }


ID_NAMES = ["conversation_id", "session", "dialog_id", "会话ID", "chat", "Chat", "chat_id", "thread", "thread_id", "conv", "conv_id",
            "topic_id", "ticket", "对话编号", "工单", "case id", "id"]  # fmt: skip


def talk(name: str, ids: list[Any]) -> Rows:
    return [
        {"role": role, "text": f"{role} {n} {k}", name: n} for n in ids for k, role in enumerate(("user", "assistant"))
    ]


@pytest.mark.parametrize("container", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("name", ID_NAMES)
def test_the_id_of_a_dialogue_under_its_usual_names(name: str, container: str, tmp_path: Path) -> None:
    CONTAINERS[container](tmp_path / "f", talk(name, [1, 2, 3, 4]))
    assert [[m.content for m in r.messages] for r in read(tmp_path / "f")] == [
        [f"user {n} 0", f"assistant {n} 1"] for n in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize("name", ["chat", "topic", "case"])
def test_such_a_name_without_repeated_ids_is_none(name: str, tmp_path: Path) -> None:
    rows = [{**row, name: f"remark {n}"} for n, row in enumerate(talk("x", [1, 2]))]
    for row in rows:
        del row["x"]
    assert [len(r.messages) for r in read(jsonl(tmp_path / "f", rows))] == [4]


def test_a_column_that_looks_like_an_id_is_asked_about(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "f", talk("kundenkontakt", ["a", "b", "c"]))
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.code == "TL-DATA-TURNS"
    assert "columns: {role: role, content: text, conversation: kundenkontakt}" in caught.value.do
    columns = {"role": "role", "content": "text", "conversation": "kundenkontakt"}
    items = list(formats.read(DataFile(path=str(path), columns=columns)))
    assert len(items) == 3
    del columns["conversation"]
    assert len(list(formats.read(DataFile(path=str(path), columns=columns)))) == 1


@pytest.mark.parametrize("beside", [
    {"lang": "en"}, {"mood": [1, 0, 1, 0]}, {"n": [1, 2, 3, 4]}, {"who": ["a", "b", "a", "b"]}, {"time": [1, 1, 2, 2]},
])  # fmt: skip
def test_other_columns_beside_turns_are_no_ids(beside: dict[str, Any], tmp_path: Path) -> None:
    rows = turns("q", "a", "p", "b")
    made = [{**row, **{k: v[n] if isinstance(v, list) else v for k, v in beside.items()}} for n, row in enumerate(rows)]
    assert [len(r.messages) for r in read(jsonl(tmp_path / "f", made))] == [4]


def test_why_turns_are_put_together_is_told(tmp_path: Path) -> None:
    assert "conversation_id says of which dialogue" in look(jsonl(tmp_path / "a", FLAT)).why
    assert "all are one" in look(jsonl(tmp_path / "b", ONE)).why
    with pytest.raises(DataError, match="TL-DATA-COLUMNS"):
        formats.sources(DataFile(path=str(tmp_path / "b"), columns={"user": "content", "assistant": "content"}))


LISTS = [["Hello there 0", "General answer 0"], ["Hello there 1", "General answer 1"]]


@pytest.mark.parametrize("rows", [LISTS, [["a"], ["b"]], [[1, 2], [3, 4]], [["q", "a", "p", "b"], ["q", "a"]]])
@pytest.mark.parametrize("lines", [True, False])
def test_lists_of_plain_texts_are_called_what_they_are(lines: bool, rows: list[list[Any]], tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(path)
    assert (caught.value.code, caught.value.where) == ("TL-DATA-ARRAYS", str(path))
    assert json.dumps(rows[0]) in caught.value.what
    assert "question" in caught.value.do
