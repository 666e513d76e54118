"""Container, encoding and shape, found by content."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuneloop.base.errors import DataError
from tuneloop.data.reading import containers
from tuneloop.data.reading import sniff as sniff_module
from tuneloop.data.reading.formats import read
from tuneloop.data.reading.sniff import Wish, look
from tuneloop.recipe.schema import DataFile

ROW = {"instruction": "早餐怎么样？", "output": "早餐的种类不多，我觉得一般。"}
ZH = json.dumps(ROW, ensure_ascii=False)


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


def test_one_broken_line_does_not_spoil_a_utf8_file(tmp_path: Path) -> None:
    lines = [ZH.encode()] * 30 + [b'{"instruction": "\xff", "output": "a"}']
    assert look(made(tmp_path, b"\n".join(lines))).encoding == "utf-8"


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
        (gzip.compress(gzip.compress(b"x", mtime=0), mtime=0), "TL-DATA-NESTED"),
        (gzip.compress(b"x" * 999, mtime=0)[:-9], "TL-DATA-ARCHIVE"),
        (b"\0" * 4096, "TL-DATA-BINARY"),
        (b"\x80\x04\x95\x00", "TL-DATA-BINARY"),
        (b"PAR1 broken PAR1", "TL-DATA-PARQUET"),
        (b"ARROW1 broken", "TL-DATA-ARROW"),
        (b"\xff\xff\xff\xff\x10\0\0\0broken", "TL-DATA-ARROW"),
        (b"PK\x03\x04 broken", "TL-DATA-ARCHIVE"),
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


def test_kind_and_roles_of_what_is_no_dialogue(tmp_path: Path) -> None:
    text = "\n".join(f"{word} was it\t{n % 2}" for n, word in enumerate(["fine", "bad"] * 10))
    guess = look(made(tmp_path, text))
    assert (guess.kind, guess.shape, guess.roles) == ("label", "labelled", {"text": "column_1", "label": "column_2"})
    swapped = "\n".join("\t".join(reversed(line.split("\t"))) for line in text.split("\n"))
    assert look(made(tmp_path, swapped)).roles == {"text": "column_2", "label": "column_1"}
    assert look(made(tmp_path, '{"text": "a"}\n' * 3)).kind == "text"
    assert look(made(tmp_path, '{"prompt": "q", "chosen": "a", "rejected": "b"}\n' * 3)).kind == "preference"
    assert look(made(tmp_path, '{"prompt": "q", "completion": "a", "label": true}\n' * 3)).kind == "judged"


def test_the_recipe_overrules_looking(tmp_path: Path) -> None:
    labelled = made(tmp_path, '{"text": "t", "label": 1}\n' * 3)
    assert look(labelled).kind == "label"
    assert look(labelled, Wish(task="text")).kind == "text"
    assert look(labelled, Wish(task="chat")).kind is None
    assert look(labelled, Wish({"user": "text", "assistant": "label"})).kind == "chat"
    japanese = made(tmp_path, "text\n朝ごはん\n", encoding="shift_jis")
    assert look(japanese, Wish(encoding="Shift-JIS")).encoding == "shift_jis"
    with pytest.raises(DataError) as caught:
        look(japanese, Wish(encoding="rot13"))
    assert caught.value.code == "TL-DATA-ENCODING-NAME"


def test_a_ragged_table_is_no_prose(tmp_path: Path) -> None:
    assert look(made(tmp_path, "id,name,age\n1101,John\n1102,Julie,26,Potatoes\n")).container == "csv"
    prose = "Hello, my friend, this is a long letter\nfrom home, and it has no end in sight, as you will soon see.\n"
    assert look(made(tmp_path, prose)).container == "txt"


def test_a_table_of_one_column_of_text(tmp_path: Path) -> None:
    guess = look(made(tmp_path, 'text\n"one, two"\n"three\nfour"\n'))
    assert (guess.container, guess.kind, guess.columns) == ("csv", "text", ("text",))


def test_a_lone_json_value_is_no_text(tmp_path: Path) -> None:
    assert look(made(tmp_path, "42\n")).kind is None
    assert look(made(tmp_path, '"word"')).kind is None


def test_a_row_without_end_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "ROW", 1 << 20)
    monkeypatch.setattr(containers, "WHOLE", 1 << 20)
    long = "a" * (1 << 21)
    for text in (f'{{"question": "{long}", "answer": "a"}}\n' * 2, f"question,answer\n{long},a\n", long,
                 f'[{{"question": "{long}", "answer": "a"}}]', f"{long}\n{long}\n"):  # fmt: skip
        with pytest.raises(DataError) as caught:
            look(made(tmp_path, text))
        assert caught.value.code in ("TL-DATA-ROW-LONG", "TL-DATA-WHOLE")


@pytest.mark.slow
def test_a_line_of_a_gigabyte_costs_no_gigabyte(tmp_path: Path) -> None:
    """In a process of its own, whose address space is less than the line."""
    for head, code in ((b'{"question": "', "TL-DATA-WHOLE"), (b"question,answer\nq,", "TL-DATA-ROW-LONG")):
        path = tmp_path / "long"
        with path.open("wb") as out:
            out.write(head)
            for _ in range(1024):
                out.write(b"a" * (1 << 20))
        program = (
            "import re, sys, pathlib\n"
            "from tuneloop.data.reading.sniff import look\n"
            "from tuneloop.base.errors import DataError\n"
            "try: look(pathlib.Path(sys.argv[1]))\n"
            "except DataError as error: print(error.code)\n"
            # ru_maxrss counts what the process that started this one held; VmHWM begins anew
            "print(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])\n"
        )
        said = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
        got, peak = said.stdout.split()
        assert got == code
        assert int(peak) < 700_000  # kilobytes
        path.unlink()


@pytest.mark.parametrize("length", [1500, 3000, 30_000], ids=["a row", "too long", "longer than a whole file"])
@pytest.mark.parametrize("at", [0, 1, 5, 29])
def test_a_long_row_is_read_or_refused_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, at: int
) -> None:
    """The first row may be longer than what is looked at: the file is JSON lines all the same."""
    for module, name, value in (
        (containers, "ROW", 2000),
        (containers, "WHOLE", 20_000),
        (sniff_module, "BUDGET", 100),
    ):
        monkeypatch.setattr(module, name, value)
    rows = [{"question": f"q {n}?", "answer": f"a {n}"} for n in range(30)]
    rows.insert(at, {"question": "long", "answer": "w" * length})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if length < 2000:
        assert len(list(read(DataFile(path=str(path))))) == 31
        return
    with pytest.raises(DataError) as caught:
        list(read(DataFile(path=str(path))))
    assert (caught.value.code, caught.value.where) == ("TL-DATA-ROW-LONG", f"{path}:{at + 1}")
