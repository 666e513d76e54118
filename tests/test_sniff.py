"""Container, encoding and shape, found by content."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from tuneloop.data.sniff import look
from tuneloop.errors import DataError

DATA = Path(__file__).parents[2] / "shared" / "data"
ROW = {"instruction": "早餐怎么样？", "output": "早餐的种类不多，我觉得一般。"}
ZH = json.dumps(ROW, ensure_ascii=False)


def shared(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{path} is missing in CI")
        pytest.skip("../shared/data is not here")
    return path


def made(tmp_path: Path, text: str | bytes, name: str = "f.bin", encoding: str = "utf-8") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("text", "container"),
    [
        (f"[{ZH}, {ZH}]", "json"),
        (f"  \n[\n{ZH}\n]", "json"),
        (f"{ZH}\n{ZH}\n", "jsonl"),
        (ZH, "jsonl"),
        (f'{{"broken": \n{ZH}\n{ZH}\n{ZH}', "jsonl"),
        (f"garbage\n{ZH}\n{ZH}\n", "jsonl"),
        (f'{{"version": 1, "rows": [{ZH}, {ZH}]}}', "object"),
        (json.dumps({"name": "x", "rows": [ROW, ROW]}, indent=2), "object"),
        (json.dumps(ROW, indent=2), "object"),
        (f"{ZH}\nbroken\nbroken\nbroken\n", "jsonl"),
        ("question,answer\nq,a\n", "csv"),
        ("question;answer\nq, r;a\n", "csv"),
        ('question,answer\n"q, ""r""","a\nb"\n', "csv"),
        ("question\tanswer\nq\ta\n", "tsv"),
        ('messages\n"[{""role"": ""user"", ""content"": ""q""}]"\n', "csv"),
        ("Once upon a time, there was a king.\nHe had no data.\n", "txt"),
        ("true", "txt"),
    ],
)
def test_container_by_content_not_by_name(tmp_path: Path, text: str, container: str) -> None:
    for name in ("a.json", "a.csv", "a"):
        assert look(made(tmp_path, text, name)).container == container


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gb18030"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_encodings(tmp_path: Path, encoding: str, kind: str) -> None:
    text = f"{ZH}\n" * 3 if kind == "jsonl" else "instruction,output\n早餐怎么样？,早餐的种类不多。\n"
    guess = look(made(tmp_path, text, encoding=encoding))
    assert (guess.encoding, guess.container, guess.shape) == (encoding, kind, "alpaca")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("big5", "早餐的種類不多，我覺得一般，下次還會再來。"),
        ("euc_kr", "아침 식사는 종류가 많지 않아서 보통이라고 생각합니다"),
        ("shift_jis", "朝ごはんの種類は多くないと思います"),
        ("koi8_r", "Завтрак был не очень разнообразным, но вкусным"),
        ("cp1251", "Завтрак был не очень разнообразным, но вкусным"),
        ("latin-1", "Le petit déjeuner était très bien, à côté de la fenêtre"),
        ("iso8859-7", "Το πρωινό ήταν πολύ καλό"),
    ],
)
def test_other_encodings_are_refused_not_guessed(tmp_path: Path, encoding: str, text: str) -> None:
    path = made(
        tmp_path, "\n".join(f'{{"instruction": "{w}", "output": "{w}"}}' for w in text.split() * 3), encoding=encoding
    )
    with pytest.raises(DataError) as caught:
        look(path)
    assert caught.value.code == "TL-DATA-ENCODING"
    assert caught.value.where.startswith(f"{path}:")


def test_one_broken_line_does_not_spoil_a_utf8_file(tmp_path: Path) -> None:
    lines = [ZH.encode()] * 30 + [b'{"instruction": "\xff", "output": "a"}']
    assert look(made(tmp_path, b"\n".join(lines))).encoding == "utf-8"


def test_half_utf8_half_gbk_names_the_line(tmp_path: Path) -> None:
    lines = [ZH.encode()] * 10 + [ZH.encode("gbk")] * 10
    with pytest.raises(DataError) as caught:
        look(made(tmp_path, b"\n".join(lines)))
    assert caught.value.where.endswith(":11")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "TL-DATA-EMPTY"),
        (b" \n\n", "TL-DATA-EMPTY"),
        (b"\xef\xbb\xbf", "TL-DATA-EMPTY"),
        (b"[]", "TL-DATA-EMPTY"),
        (b"{'a': 1}", "TL-DATA-JSON"),
        (b"[{'a': 1}]", "TL-DATA-JSON"),
        (b"[" * 100_000, "TL-DATA-JSON"),
        (b"[" + b"9" * 5000 + b"]", "TL-DATA-JSON"),
        (gzip.compress(b"x"), "TL-DATA-BINARY"),
        (b"\x80\x04\x95\x00", "TL-DATA-BINARY"),
        (b"PAR1 broken PAR1", "TL-DATA-PARQUET"),
        (b'{"train": [{"a": 1}], "test": [{"a": 1}]}', "TL-DATA-LISTS"),
        (bytes(range(256)), "TL-DATA-ENCODING"),
        (b"\xff\xfea", "TL-DATA-ENCODING"),
    ],
)
def test_what_cannot_be_read_has_a_code(tmp_path: Path, content: bytes, code: str) -> None:
    with pytest.raises(DataError) as caught:
        look(made(tmp_path, content))
    assert caught.value.code == code
    assert str(tmp_path) in caught.value.where
    assert caught.value.what
    assert caught.value.do


def test_missing_folder_and_device(tmp_path: Path) -> None:
    for path, code in ((tmp_path / "no", "MISSING"), (tmp_path, "FOLDER"), (tmp_path / "x\0y", "MISSING")):
        with pytest.raises(DataError) as caught:
            look(path)
        assert caught.value.code == f"TL-DATA-{code}"
    if os.name == "posix":
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError) as caught:
            look(tmp_path / "pipe")
        assert caught.value.code == "TL-DATA-UNREADABLE"


def test_json_place_is_file_line_column(tmp_path: Path) -> None:
    path = made(tmp_path, '{\n "rows": [\n  {"a": 1,}\n ]\n}')
    with pytest.raises(DataError) as caught:
        look(path)
    assert caught.value.where == f"{path}:3:11"


def test_the_head_of_a_large_array_is_enough(tmp_path: Path) -> None:
    path = made(tmp_path, "[" + ",".join([ZH] * 40_000) + "]")
    guess = look(path)
    assert (guess.container, guess.shape, guess.sure) == ("json", "alpaca", 1.0)


def test_one_row_longer_than_the_head(tmp_path: Path) -> None:
    row = json.dumps({"instruction": "q" * 3_000_000, "output": "a"})
    assert look(made(tmp_path, f"[{row}]")).shape == "alpaca"
    assert look(made(tmp_path, f"{row}\n{row}\n")).container == "jsonl"


def test_columns_and_reason_are_told(tmp_path: Path) -> None:
    guess = look(made(tmp_path, '{"question": "q", "answer": "a", "options": "x"}\n' * 2))
    assert guess.columns == ("question", "answer", "options")
    assert guess.roles == {"user": "question", "assistant": "answer"}
    assert "options" in guess.why


def test_header_without_names_and_twice_the_same(tmp_path: Path) -> None:
    guess = look(made(tmp_path, "id,,id\n1,a,x\n2,b,y\n"))
    assert guess.columns == ("id", "column_2", "id_2")


def test_no_header(tmp_path: Path) -> None:
    guess = look(made(tmp_path, "what is 1+1?\t2\nwhat is 2+2?\t4\n"))
    assert guess.table is not None
    assert not guess.table.header
    assert guess.columns == ("column_1", "column_2")


def test_quotes_in_tsv_mean_something_only_where_they_fit(tmp_path: Path) -> None:
    bare = look(made(tmp_path, 'question\tanswer\nsay "hi\tok\nwhat"\tyes\n'))
    quoted = look(made(tmp_path, 'question\tanswer\n"a ""b"""\t"c\td"\nx\ty\n'))
    assert bare.table is not None
    assert not bare.table.quoted
    assert quoted.table is not None
    assert quoted.table.quoted


REAL = {
    "emollm/data.json": ("json", "input_output_turns"),
    "emollm/ruozhiba_format_emo.jsonl": ("json", "input_output_turns"),
    "emollm/ruozhiba_raw.jsonl": ("jsonl", "alpaca"),
    "emollm/converted.json": ("jsonl", "alpaca"),
    "emollm/aiwei_swift.jsonl": ("jsonl", "query_response"),
    "smilechat/dialogs.jsonl": ("jsonl", "client_counselor"),
    "huatuo_o1/sft_en.json": ("json", "question_cot_response"),
    "huatuo_o1/demo_data.json": ("json", "question_cot_response"),
    "gaokao_zh/2010-2022_Biology_MCQs.json": ("object", "question_answer"),
    "llamafactory/identity.json": ("json", "alpaca"),
    "llamafactory/glaive_toolcall_zh_demo.json": ("json", "sharegpt"),
    "llamafactory/reason_tool_use_demo_50.jsonl": ("jsonl", "messages"),
    "medicalgpt/sample.jsonl": ("jsonl", "question_answer"),
    "openai_messages/drone_training.jsonl": ("jsonl", "messages"),
    "llamafactory/dpo_zh_demo.json": ("json", "preference"),
    "llamafactory/kto_en_demo.json": ("json", "preference"),
    "llamafactory/v1_dpo_demo.jsonl": ("jsonl", "preference"),
    "medicalgpt/dpo_zh_500.jsonl": ("jsonl", "preference"),
    "llamafactory/c4_demo.jsonl": ("jsonl", "text"),
    "llamafactory/wiki_demo.txt": ("txt", "text"),
    "imdb/train.csv": ("csv", "labelled"),
    "sst2/train.tsv": ("tsv", "labelled"),
    "chnsenticorp/test.tsv": ("tsv", "labelled"),
    "waimai/waimai_10k.csv": ("csv", "labelled"),
    "ruozhiba_qa/questions.jsonl": ("jsonl", "unknown"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(name: str) -> None:
    guess = look(shared(name))
    assert (guess.container, guess.shape) == REAL[name]
    assert guess.encoding == "utf-8"


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("gbk", "gb18030"),
        ("gb18030", "gb18030"),
        ("utf16_bom", "utf-16"),
        ("utf16le_nobom", "utf-16-le"),
        ("utf8_bom", "utf-8-sig"),
    ],
)
def test_the_same_reviews_in_other_encodings(name: str, encoding: str) -> None:
    guess = look(shared(f"messy/encodings/derived_hotel_{name}.csv"))
    assert (guess.encoding, guess.columns) == (encoding, ("label", "review"))


@pytest.mark.parametrize(
    ("name", "line"),
    [("derived_hotel_mixed_utf8_then_gbk.csv", 32), ("sample-chinese.txt", 1), ("sample-russian.txt", 1)],
)
def test_real_files_in_no_known_encoding(name: str, line: int) -> None:
    path = shared(f"messy/encodings/{name}")
    with pytest.raises(DataError) as caught:
        look(path)
    assert (caught.value.code, caught.value.where) == ("TL-DATA-ENCODING", f"{path}:{line}")
