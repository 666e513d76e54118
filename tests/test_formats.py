"""Raw files -> records: every row comes out, as a Record or as an entry that says why not.

Over 400 lines: the mirror of one module, mostly tables of cases.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuneloop.data import formats
from tuneloop.data.clean import clean
from tuneloop.data.ledger import words
from tuneloop.errors import DataError
from tuneloop.records import LedgerEntry, Record
from tuneloop.sections import DataFile

DATA = Path(__file__).parents[2] / "shared" / "data"
GOOD = '{"question": "q", "answer": "a"}'


def shared(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{path} is missing in CI")
        pytest.skip("../shared/data is not here")
    return path


def write(tmp_path: Path, text: str | bytes, name: str = "f.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return path


def read(path: Path | str, **settings: object) -> tuple[list[Record], list[LedgerEntry]]:
    items = list(formats.read(DataFile.model_validate({"path": str(path), **settings})))
    assert all(i.action == "dropped" and i.reason in words() for i in items if isinstance(i, LedgerEntry))
    return [i for i in items if isinstance(i, Record)], [i for i in items if isinstance(i, LedgerEntry)]


def code_of(path: Path | str, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **settings)
    assert caught.value.what
    assert caught.value.do
    assert "?" not in caught.value.what.replace("did you mean", "").replace("?)", ""), caught.value.what
    return caught.value.code


# rows, roles counted by hand with json alone, tool calls, rows with a thought
REAL: dict[str, tuple[int, dict[str, int], int, int]] = {
    "emollm/data.json": (500, {"system": 500, "user": 1582, "assistant": 1582}, 0, 0),
    "emollm/aiwei.json": (400, {"system": 400, "user": 1066, "assistant": 1066}, 0, 0),
    "emollm/tiangou.json": (301, {"system": 300, "user": 798, "assistant": 798}, 0, 0),
    "emollm/self_cognition_EmoLLM.json": (58, {"user": 58, "assistant": 58}, 0, 0),
    "emollm/processed_self_cognition_EmoLLM.json": (58, {"system": 58, "user": 58, "assistant": 58}, 0, 0),
    "emollm/ruozhiba_raw.jsonl": (174, {"user": 174, "assistant": 174}, 0, 0),
    "emollm/ruozhiba_format_emo.jsonl": (174, {"system": 174, "user": 174, "assistant": 174}, 0, 0),
    "emollm/aiwei_swift.jsonl": (80, {"user": 125, "assistant": 125}, 0, 0),
    "emollm/converted.json": (100, {"user": 100, "assistant": 100}, 0, 0),
    "smilechat/dialogs.jsonl": (150, {"user": 851, "assistant": 824}, 0, 0),
    "alpaca_cot_en/strategyqa_train.json": (200, {"user": 200, "assistant": 200}, 0, 0),
    "alpaca_cot_en/aqua_train.json": (150, {"user": 150, "assistant": 150}, 0, 0),
    "llamafactory/alpaca_zh_demo.json": (300, {"user": 300, "assistant": 300}, 0, 0),
    "llamafactory/alpaca_en_demo.json": (300, {"user": 300, "assistant": 300}, 0, 0),
    "llamafactory/identity.json": (65, {"user": 65, "assistant": 65}, 0, 0),
    "llamafactory/glaive_toolcall_zh_demo.json": (100, {"user": 244, "assistant": 314, "tool": 70}, 68, 0),
    "llamafactory/glaive_toolcall_en_demo.json": (100, {"user": 252, "assistant": 323, "tool": 71}, 71, 0),
    "llamafactory/reason_tool_use_demo_50.jsonl": (
        37, {"system": 37, "user": 51, "assistant": 81, "tool": 30}, 49, 37,
    ),
    "llamafactory/v1_sft_demo.jsonl": (150, {"user": 150, "assistant": 150}, 0, 0),
    "medicalgpt/sharegpt_zh_1K_format.jsonl": (150, {"user": 595, "assistant": 595}, 0, 0),
    "medicalgpt/medical_sft_1K_format.jsonl": (300, {"user": 300, "assistant": 300}, 0, 0),
    "medicalgpt/sample.jsonl": (23, {"user": 23, "assistant": 23}, 0, 0),
    "openai_messages/toy_chat_fine_tuning.jsonl": (5, {"system": 4, "user": 7, "assistant": 8}, 0, 0),
    "openai_messages/drone_training.jsonl": (3, {"system": 3, "user": 3, "assistant": 3}, 3, 0),
    "huatuo_o1/sft_en.json": (147, {"user": 147, "assistant": 147}, 0, 147),
    "huatuo_o1/demo_data.json": (147, {"user": 147, "assistant": 147}, 0, 147),
    "gaokao_zh/derived_cot_zh.json": (408, {"user": 408, "assistant": 408}, 0, 408),
    "gaokao_zh/2010-2022_Biology_MCQs.json": (90, {"user": 90, "assistant": 90}, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_files_row_by_row(name: str) -> None:
    rows, roles, calls, thoughts = REAL[name]
    records, bad = read(shared(name))
    assert not bad
    assert len(records) == rows
    assert Counter(m.role for r in records for m in r.messages) == roles
    assert sum(len(m.tool_calls) for r in records for m in r.messages) == calls
    assert sum(any(m.reasoning for m in r.messages) for r in records) == thoughts
    assert {r.file for r in records} == {Path(name).name}
    assert [r.line for r in records] == sorted({r.line for r in records})


def test_the_same_rows_in_two_formats_are_the_same_dialogues() -> None:
    raw, _ = read(shared("emollm/ruozhiba_raw.jsonl"))
    made, _ = read(shared("emollm/ruozhiba_format_emo.jsonl"))
    assert [r.messages for r in raw] == [r.messages[1:] for r in made]


def test_huatuo_thought_and_answer() -> None:
    path = shared("huatuo_o1/sft_en.json")
    first = json.loads(path.read_text(encoding="utf-8"))[0]
    records, _ = read(path)
    assert records[0].messages[0].content == first["Question"]
    assert records[0].messages[1].content == first["Response"]
    assert records[0].messages[1].reasoning == first["Complex_CoT"]


def test_doubly_encoded_arguments_of_the_drone() -> None:
    records, _ = read(shared("openai_messages/drone_training.jsonl"))
    arguments = [r.messages[2].tool_calls[0]["function"]["arguments"] for r in records]
    assert arguments == [{"altitude": 100}, {"location": "current"}, {"location": "home_base"}]
    assert all(tool["type"] == "function" for r in records for tool in r.tools)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("llamafactory/dpo_zh_demo.json", "TL-DATA-TASK"),
        ("llamafactory/kto_en_demo.json", "TL-DATA-TASK"),
        ("llamafactory/v1_dpo_demo.jsonl", "TL-DATA-TASK"),
        ("medicalgpt/toolcall_dpo_zh_demo.jsonl", "TL-DATA-TASK"),
        ("llamafactory/c4_demo.jsonl", "TL-DATA-TASK"),
        ("llamafactory/wiki_demo.txt", "TL-DATA-TASK"),
        ("imdb/train.csv", "TL-DATA-TASK"),
        ("sst2/train.tsv", "TL-DATA-TASK"),
        ("waimai/waimai_10k.csv", "TL-DATA-TASK"),
        ("ruozhiba_qa/questions.jsonl", "TL-DATA-SHAPE"),
        ("pii_presidio/synth_dataset_v2.json", "TL-DATA-SHAPE"),
    ],
)
def test_what_is_not_trained_is_refused_by_name(name: str, code: str) -> None:
    assert code_of(shared(name)) == code


def test_columns_make_a_refused_file_readable() -> None:
    path = shared("ruozhiba_qa/questions.jsonl")
    records, bad = read(path, columns={"user": "question", "assistant": "human_answer"})
    assert len(records) + len(bad) == 200
    assert records[0].messages[0].content == json.loads(path.open(encoding="utf-8").readline())["question"]
    records, _ = read(shared("imdb/test.csv"), columns={"user": "review", "assistant": "sentiment"})
    assert Counter(r.messages[1].content for r in records) == {"positive": 150, "negative": 150}


def test_bare_quotes_in_tsv_swallow_no_line() -> None:
    path = shared("chnsenticorp/train.tsv")
    records, bad = read(path, columns={"user": "text_a", "assistant": "label"})
    assert (len(records), bad) == (1200, [])


@pytest.mark.parametrize("name", ["gbk", "gb18030", "utf16_bom", "utf16le_nobom"])
def test_the_same_text_from_every_encoding(name: str) -> None:
    columns = {"user": "review", "assistant": "label"}
    reference, _ = read(shared("messy/encodings/derived_hotel_utf8_bom.csv"), columns=columns)
    records, _ = read(shared(f"messy/encodings/derived_hotel_{name}.csv"), columns=columns)
    common = min(len(records), len(reference))
    assert common >= 60
    texts = [[m.content.replace("\r\n", "\n") for m in r.messages] for r in records]
    assert texts[:common] == [[m.content for m in r.messages] for r in reference][:common]


def every_file() -> list[str]:
    if not DATA.exists():
        return ["messy"]
    return sorted(str(p.relative_to(DATA)) for p in DATA.rglob("*") if p.is_file() and p.name[0] != ".")


@pytest.mark.parametrize("name", every_file())
def test_any_file_gives_rows_or_a_code(name: str) -> None:
    path = shared(name)
    try:
        records, bad = read(path)
    except DataError as caught:
        refused = caught
    else:
        refused = None
    if refused:
        assert refused.code.startswith("TL-DATA-")
        assert refused.what
        assert refused.do
        return
    kept = [clean(r) for r in records]
    assert all((record is None) == any(e.action == "dropped" for e in entries) for record, entries in kept)
    text = path.read_bytes()
    if text.lstrip()[:1] == b"[":
        assert len(records) + len(bad) == len(json.loads(text))
    elif path.suffix == ".jsonl":
        assert len(records) + len(bad) == sum(bool(line.strip()) for line in text.split(b"\n"))


def test_bad_lines_go_to_the_ledger_with_their_line(tmp_path: Path) -> None:
    text = "\n".join(
        [
            GOOD,
            "",
            "{'question': 'python', 'answer': 'repr'}",
            '{"question": "q", "answer": NaN}',
            '{"question": "q", "answer": 1e999}',
            '{"question": "q", "answer": "\\ud800 alone"}',
            '{"question": "q"}',
            "{}",
            "null",
            "[1, 2]",
            '{"question": "q", "answer": "a", "score": NaN}',
            "[" * 100_000,
            GOOD[:-1],
            GOOD + "\r",
            *[GOOD] * 8,
        ]
    )
    records, bad = read(write(tmp_path, text))
    assert [(e.line, e.reason) for e in bad] == [
        (3, "broken JSON"),
        (4, "NaN or infinity"),
        (5, "NaN or infinity"),
        (6, "invalid Unicode"),
        (7, "other shape"),
        (8, "empty row"),
        (9, "empty row"),
        (10, "not an object"),
        (12, "broken JSON"),
        (13, "broken JSON"),
    ]
    assert [r.line for r in records][:3] == [1, 11, 14]
    assert {e.file for e in bad} == {"f.jsonl"}


def test_the_same_in_an_array_is_counted_by_row(tmp_path: Path) -> None:
    text = f'[{GOOD}, null, {{"question": "q", "answer": "\\udfff"}}, {{"question": NaN, "answer": "a"}}, 7, {GOOD}]'
    records, bad = read(write(tmp_path, text))
    assert [r.line for r in records] == [1, 6]
    assert [(e.line, e.reason) for e in bad] == [
        (2, "empty row"),
        (3, "invalid Unicode"),
        (4, "NaN or infinity"),
        (5, "not an object"),
    ]


def test_undecodable_bytes_in_one_row(tmp_path: Path) -> None:
    lines = [GOOD.encode()] * 20 + [b'{"question": "\xe9t\xe9", "answer": "a"}']
    records, bad = read(write(tmp_path, b"\n".join(lines)))
    assert len(records) == 20
    assert [(e.line, e.reason, e.detail) for e in bad] == [(21, "invalid Unicode", bad[0].detail)]
    bad[0].detail.encode("utf-8")


def test_table_rows_keep_their_line(tmp_path: Path) -> None:
    text = 'question,answer\n"two\nlines",a\n\n,\nq,a,extra\nq\n"q"x,a\nq,a\n"never closed,a\nq,a\n'
    records, bad = read(write(tmp_path, text, "f.csv"))
    assert [(r.line, r.messages[0].content) for r in records] == [(2, "two\nlines"), (9, "q")]
    assert [(e.line, e.reason) for e in bad] == [
        (5, "empty row"),
        (6, "ragged row"),
        (7, "ragged row"),
        (8, "broken CSV"),
        (10, "broken CSV"),
    ]
    assert bad[-1].detail.startswith("10-11")


def test_cells_longer_than_pythons_limit(tmp_path: Path) -> None:
    records, bad = read(write(tmp_path, f"question,answer\nq,{'a' * 500_000}\n", "f.csv"))
    assert not bad
    assert len(records[0].messages[1].content) == 500_000


def test_parquet(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"messages": [turns, None, turns], "n": [1, 2, 3]}), path)
    records, bad = read(path)
    assert [r.line for r in records] == [1, 3]
    assert [m.content for m in records[0].messages] == ["q", "a"]
    assert [(e.line, e.reason) for e in bad] == [(2, "no turns")]
    path.write_bytes(path.read_bytes()[:-30])
    assert code_of(path) == "TL-DATA-PARQUET"
    pq.write_table(pa.table({"messages": pa.array([], pa.string())}), path)
    assert code_of(path) == "TL-DATA-EMPTY"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"[{GOOD}, {GOOD}", "TL-DATA-JSON"),
        (f"[{GOOD}] extra", "TL-DATA-JSON"),
        ("question,answer\n", "TL-DATA-EMPTY"),
        ('{"question": "q", "answer": 1}\n' * 3, "TL-DATA-ALL-BAD"),
        ("{'question': 'q', 'answer': 'a'}\n" * 3, "TL-DATA-JSON"),
        ('{"a": "q", "b": "a"}\n' * 3, "TL-DATA-SHAPE"),
        ("question,answer\nq\nq\n", "TL-DATA-ALL-BAD"),
        ('["a", "b"]', "TL-DATA-SHAPE"),
    ],
)
def test_a_file_that_is_broken_as_a_whole(tmp_path: Path, text: str, code: str) -> None:
    assert code_of(write(tmp_path, text)) == code


def test_all_bad_names_the_first_row_and_the_reason(tmp_path: Path) -> None:
    path = write(tmp_path, "\n" + '{"question": "q", "answer": 1}\n' * 3)
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.where == f"{path}:2"
    assert "3 rows" in caught.value.what
    assert "answer: int" in caught.value.what


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ("[:2]", [1, 2]),
        ("[2:4]", [3, 4]),
        ("[8:]", [9, 10]),
        ("[-2:]", [9, 10]),
        ("[:-8]", [1, 2]),
        ("[::4]", [1, 5, 9]),
        ("[:]", list(range(1, 11))),
        (" [ 1 : 3 ] ", [2, 3]),
        ("[:999999999999999999]", list(range(1, 11))),
    ],
)
def test_slices(tmp_path: Path, rows: str, lines: list[int]) -> None:
    records, bad = read(write(tmp_path, f"{GOOD}\n" * 10), rows=rows)
    assert [r.line for r in records] == lines
    assert not bad


@pytest.mark.parametrize(
    ("rows", "code"),
    [("[10:]", "ROWS-NONE"), ("5", "ROWS"), ("[a:b]", "ROWS"), (f"[:{'9' * 30}]", "ROWS"), ("[::0]", "ROWS")],
)
def test_slices_that_cannot_be(tmp_path: Path, rows: str, code: str) -> None:
    assert code_of(write(tmp_path, f"{GOOD}\n" * 10), rows=rows) == f"TL-DATA-{code}"


def test_a_slice_counts_bad_rows_too(tmp_path: Path) -> None:
    records, bad = read(write(tmp_path, f"{GOOD}\nbroken\n{GOOD}\n{GOOD}\n"), rows="[:2]")
    assert ([r.line for r in records], [e.line for e in bad]) == ([1], [2])


def test_globs_are_sorted_and_sliced_together(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        write(tmp_path, f"{GOOD}\n{GOOD}\n", name)
    records, _ = read(tmp_path / "*.jsonl", rows="[1:3]")
    assert [(r.file, r.line) for r in records] == [("a.jsonl", 2), ("b.jsonl", 1)]
    assert code_of(tmp_path / "*.nothing") == "TL-DATA-MISSING"


def test_a_name_with_brackets_is_a_name_first(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "chat[1].jsonl")
    assert read(tmp_path / "chat[1].jsonl")[0][0].file == "chat[1].jsonl"


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, GOOD, "train.jsonl")
    records, _ = read(tmp_path / "*" / "train.jsonl")
    assert [r.file for r in records] == ["x/train.jsonl", "y/train.jsonl"]


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        ({"user": "questions", "assistant": "answer"}, "question"),
        ({"users": "question", "assistant": "answer"}, "user"),
        ({"user": "question"}, "assistant"),
        ({"messages": "question", "user": "answer"}, "exclude"),
    ],
)
def test_columns_that_do_not_fit(tmp_path: Path, columns: dict[str, str], hint: str) -> None:
    with pytest.raises(DataError) as caught:
        read(write(tmp_path, f"{GOOD}\n" * 2), columns=columns)
    assert caught.value.code == "TL-DATA-COLUMNS"
    assert hint in caught.value.facts["problems"]


@pytest.mark.skipif(os.name != "posix", reason="names of bytes are POSIX")
def test_a_file_name_that_is_not_unicode(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9t\xe9.jsonl"))
    path.write_text(GOOD, encoding="utf-8")
    records, _ = read(path)
    records[0].file.encode("utf-8")
    path.write_text("", encoding="utf-8")
    assert code_of(path) == "TL-DATA-EMPTY"


def test_random_damage_never_raises_anything_else(tmp_path: Path) -> None:
    """Bytes flipped, cut and repeated in good files of every container."""
    csv = ("question,answer\n" + 'q,"a, b"\n' * 5).encode()
    turns = '{"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}], "tools": "[]"}'
    pq.write_table(pa.table({"question": ["q"] * 5, "answer": ["a"] * 5}), tmp_path / "p")
    rows = f"{turns}\n" * 3
    starts = [csv, csv.replace(b",", b"\t"), f"[{GOOD}, {turns}]".encode(), f"{GOOD}\n{rows}".encode()]
    starts += [rows.encode("gb18030"), rows.encode("utf-16"), (tmp_path / "p").read_bytes()]
    bits = [b'"', b"\0", b"\n", b"{", b"]", b"null", b"\\ud800", b"\xff", b",", b"NaN"]
    dice = random.Random(0)
    for _ in range(1500):
        data = bytearray(dice.choice(starts))
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(data) or 1)
            kind = dice.randrange(4)
            if kind == 0:
                data[at : at + 1] = bytes([dice.randrange(256)])
            elif kind == 1:
                del data[at:]
            elif kind == 2:
                data[at:at] = data[at : at + 20]
            else:
                data[at:at] = dice.choice(bits)
        path = write(tmp_path, bytes(data), "damaged")
        try:
            records, _ = read(path)
        except DataError:
            continue
        for record in records:
            clean(record)
