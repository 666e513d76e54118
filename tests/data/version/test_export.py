"""A dataset's rows in other tools' shapes: they come back as they were, or the export is refused by name."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.real import load
from tuneloop.base.errors import DataError, MachineError
from tuneloop.base.records import Message, Record
from tuneloop.data.reading import formats
from tuneloop.data.version.export import DEFAULT, SHAPES, export, row
from tuneloop.recipe.schema import DataFile

CHAT = ["messages", "sharegpt", "alpaca", "query", "prompt", "question", "emollm", "human", "counselor", "o1"]
PAIRS = ["preference", "preference-pair", "preference-text"]
FILES: dict[str, list[str]] = {
    "chat": [
        "alpaca_cot_en/aqua_train.json", "alpaca_cot_en/strategyqa_train.json", "emollm/aiwei.json", "emollm/aiwei_swift.jsonl",
        "emollm/converted.json", "emollm/data.json", "emollm/processed_self_cognition_EmoLLM.json",
        "emollm/ruozhiba_format_emo.jsonl", "emollm/ruozhiba_raw.jsonl", "emollm/self_cognition_EmoLLM.json",
        "emollm/tiangou.json", "gaokao_zh/2010-2022_Biology_MCQs.json", "gaokao_zh/2010-2022_Chemistry_MCQs.json",
        "gaokao_zh/2010-2022_History_MCQs.json", "gaokao_zh/2010-2022_Math_I_MCQs.json",
        "gaokao_zh/2010-2022_Physics_MCQs.json", "gaokao_zh/derived_cot_zh.json", "huatuo_o1/demo_data.json",
        "huatuo_o1/sft_en.json", "llamafactory/alpaca_en_demo.json", "llamafactory/alpaca_zh_demo.json",
        "llamafactory/glaive_toolcall_en_demo.json", "llamafactory/glaive_toolcall_zh_demo.json",
        "llamafactory/identity.json", "llamafactory/reason_tool_use_demo_50.jsonl", "llamafactory/v1_sft_demo.jsonl",
        "medicalgpt/medical_sft_1K_format.jsonl", "medicalgpt/sample.jsonl", "medicalgpt/sharegpt_zh_1K_format.jsonl",
        "openai_messages/drone_training.jsonl", "openai_messages/toy_chat_fine_tuning.jsonl", "smilechat/dialogs.jsonl",
    ],
    "label": [
        "chnsenticorp/dev.tsv", "chnsenticorp/test.tsv", "chnsenticorp/train.tsv",
        "chnsenticorp_hotel/ChnSentiCorp_htl_all.csv", "imdb/train.csv", "imdb/test.csv", "sst2/train.tsv", "sst2/dev.tsv",
        "waimai/waimai_10k.csv",
    ],
    "preference": [
        "llamafactory/dpo_zh_demo.json", "llamafactory/dpo_en_demo.json", "llamafactory/v1_dpo_demo.jsonl",
        "medicalgpt/dpo_zh_500.jsonl", "medicalgpt/toolcall_dpo_zh_demo.jsonl",
    ],
    "text": ["llamafactory/c4_demo.jsonl", "llamafactory/wiki_demo.txt"],
    "judged": ["llamafactory/kto_en_demo.json"],
}  # fmt: skip
OF_KIND = {"chat": CHAT, "label": ["label"], "preference": PAIRS, "text": ["text"], "judged": ["kto"]}
CASES = [(kind, name, shape) for kind, names in FILES.items() for name in names for shape in OF_KIND[kind]]
WHOLE = {"messages", "preference", "kto", "label", "text"}
"""Shapes that hold every row of their kind."""


def test_every_shape_is_tried() -> None:
    assert sorted(shape for shapes in OF_KIND.values() for shape in shapes) == sorted(SHAPES)
    assert {DEFAULT[kind] for kind in FILES} == WHOLE


def ids(path: Path) -> list[str]:
    return [item.id for item in formats.read(DataFile(path=str(path)))]


def held(records: list[Record], shape: str) -> tuple[list[Record], Counter[str]]:
    """The records that the shape holds, and what is said of the others."""
    good, lost = [], Counter[str]()
    for record in records:
        try:
            row(record, shape)
            good.append(record)
        except DataError as error:
            if (error.code, error.where) != ("TL-DATA-HOLD", f"{record.file}:{record.line}"):
                raise
            lost[error.facts["lost"]] += 1
    return good, lost


@pytest.mark.parametrize(("kind", "name", "shape"), CASES)
def test_round_trip_of_real_rows(tmp_path: Path, kind: str, name: str, shape: str) -> None:
    records = load(name)[:150]
    assert {r.kind for r in records} == {kind}
    good, lost = held(records, shape)
    assert shape not in WHOLE or not lost
    for ending in ("jsonl", "parquet") if good else ():
        path = tmp_path / f"{name.replace('/', '_')}.{ending}"
        assert export(good, path, shape) == {"rows": len(good), "guarded": 0}
        assert ids(path) == [r.id for r in good]


UNSURE = {("text", "tsv")}
"""One column may look like plain text."""
FEW = {names[0] for names in FILES.values()} | {"emollm/data.json"}


@pytest.mark.parametrize(("kind", "name", "shape"), [case for case in CASES if case[1] in FEW])
def test_round_trip_of_tables_and_arrays(tmp_path: Path, kind: str, name: str, shape: str) -> None:
    good, _ = held(load(name)[:60], shape)
    for ending in ("json", "csv", "tsv") if good else ():
        path = tmp_path / f"rows.{ending}"
        if (shape, ending) in UNSURE:
            with pytest.raises(DataError) as caught:
                export(good, path, shape)
            assert caught.value.code == "TL-DATA-HOLD"
            assert not list(tmp_path.glob(f"*{ending}"))
            continue
        counts = export(good, path, shape)
        same = sum(a == b.id for a, b in zip(ids(path), good, strict=True))
        assert same >= len(good) - counts["guarded"]


def test_what_is_refused_says_what_would_be_lost() -> None:
    thoughts, tools, long = (
        load("huatuo_o1/sft_en.json"),
        load("llamafactory/glaive_toolcall_zh_demo.json"),
        load("emollm/data.json"),
    )
    assert held(thoughts[:9], "alpaca") == ([], Counter({"reasoning of turn 2": 9}))
    assert set(held(tools, "alpaca")[1]) >= {"tool_calls of turn 2", "tool_calls of turn 4", "tools"}
    assert set(held(long[:9], "question")[1]) <= {f"{n} / 3 turns" for n in (5, 7, 9)}
    with pytest.raises(DataError) as caught:
        row(thoughts[0], "sharegpt")
    assert all(word in caught.value.what for word in ("sharegpt", "chat", "reasoning of turn 2"))
    for shape in sorted(WHOLE - {"messages"}):
        assert set(held(thoughts[:1], shape)[1]) == {"it has another form"}


def chat(*turns: Message, **more: Any) -> Record:
    return Record((Message("user", "q"), Message("assistant", "a"), *turns), "f", 1, **more)


@pytest.mark.parametrize(
    "record",
    [
        chat(Message("user", "q2"), Message("assistant", "a2", trained=False)),
        chat(
            Message("user", "q2"),
            Message(
                "assistant",
                "",
                "t",
                (
                    {
                        "id": "1",
                        "type": "function",
                        "function": {"name": "f", "arguments": {"x": [1, None, {"y": 1.5}]}},
                    },
                ),
            ),
        ),
        chat(tools=({"type": "function", "function": {"name": "f", "parameters": {"a": {}, "b": [[]]}}},)),
        chat(Message("assistant", "again")),
        chat(Message("user", " blanks \n\n at the end \t ")),
    ],
)
@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_messages_hold_everything(tmp_path: Path, record: Record, ending: str) -> None:
    rows = [record, chat(), chat(Message("user", "other"), Message("assistant", "b"))]
    assert export(rows, tmp_path / f"f.{ending}", "messages")["rows"] == 3
    assert ids(tmp_path / f"f.{ending}") == [r.id for r in rows]


def test_what_openai_reads(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "中"}}}
    record = chat(Message("user", "q2"), Message("assistant", "", tool_calls=(call,), trained=False))
    export([record], tmp_path / "f.jsonl", "messages")
    assert json.loads((tmp_path / "f.jsonl").read_text("utf-8"))["messages"][-1] == {
        "role": "assistant", "content": "", "weight": 0,
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x": "中"}'}}],
    }  # fmt: skip


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r"])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_formulas_are_guarded_and_counted(tmp_path: Path, first: str, ending: str) -> None:
    bad = f"{first}cmd|' /C calc'!A0"
    rows = [Record((Message("user", bad), Message("assistant", "a" + bad)), "f", 1)]
    rows += [Record((Message("user", f"q{n}, {first}"), Message("assistant", "a")), "f", n) for n in range(3)]
    assert export(rows, tmp_path / f"f.{ending}", "question") == {"rows": 4, "guarded": 1}
    with (tmp_path / f"f.{ending}").open(encoding="utf-8", newline="") as file:
        cells = [cell for line in csv.reader(file, delimiter="," if ending == "csv" else "\t") for cell in line]
    assert "'" + bad in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert export(rows, tmp_path / "f.jsonl", "question")["guarded"] == 0


def test_a_table_that_would_be_taken_for_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:  # one column, no tab: long lines of plain text
        export(load("llamafactory/c4_demo.jsonl"), tmp_path / "f.tsv", "text")
    assert caught.value.code == "TL-DATA-HOLD"
    assert ".jsonl" in caught.value.what
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_a_refusal_leaves_nothing_behind(tmp_path: Path, ending: str) -> None:
    rows = [*load("emollm/self_cognition_EmoLLM.json")[:5], load("huatuo_o1/sft_en.json")[0]]
    with pytest.raises(DataError) as caught:
        export(rows, tmp_path / f"f.{ending}", "alpaca")
    assert caught.value.code == "TL-DATA-HOLD"
    assert not list(tmp_path.iterdir())

    def stopped() -> Any:
        yield rows[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(stopped(), tmp_path / f"f.{ending}", "alpaca")
    assert not list(tmp_path.iterdir())


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text("mine")
    with pytest.raises(DataError) as caught:
        export([chat()], tmp_path / "f.jsonl", "messages")
    assert caught.value.code == "TL-DATA-THERE"
    assert (tmp_path / "f.jsonl").read_text() == "mine"


@pytest.mark.parametrize(("name", "shape"), [("f.txt", "messages"), ("f", "messages"), ("f.jsonl", "other")])
def test_an_unknown_ending_or_shape(tmp_path: Path, name: str, shape: str) -> None:
    with pytest.raises(DataError) as caught:
        export([chat()], tmp_path / name, shape)
    assert caught.value.code == "TL-DATA-TARGET"
    assert all(word in caught.value.do for word in (".parquet", "sharegpt"))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MachineError) as caught:
        export([chat()], tmp_path / "no" / "f.jsonl", "messages")
    assert caught.value.code == "TL-MACHINE-FOLDER"


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_no_rows(tmp_path: Path, ending: str) -> None:
    assert export([], tmp_path / f"f.{ending}", "messages") == {"rows": 0, "guarded": 0}
    assert (tmp_path / f"f.{ending}").is_file()
