"""Raw files -> records: every row comes out, as a Record or as an entry that says why not.

Over 400 lines: the mirror of one module, mostly tables of cases.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.real import DATA, shared
from tuneloop.base.errors import DataError
from tuneloop.base.records import LedgerEntry, Record
from tuneloop.data.ledger import words
from tuneloop.data.reading import formats, places
from tuneloop.recipe.schema import DataFile

GOOD = '{"question": "q", "answer": "a"}'


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
    assert records
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
    lines = [GOOD.encode()] * 20 + [b'{"question": "\xff\xfe\x81", "answer": "a"}']
    records, bad = read(write(tmp_path, b"\n".join(lines)))
    assert len(records) == 20
    assert [(e.line, e.reason, e.detail) for e in bad] == [(21, "invalid Unicode", bad[0].detail)]
    bad[0].detail.encode("utf-8")


def test_table_rows_keep_their_line(tmp_path: Path) -> None:
    text = 'question,answer\n"two\nlines",a\n\n,\nq,a,extra\nq\n"q"x,a\nq,a\n"never closed,a\nq,a\n'
    records, bad = read(write(tmp_path, text, "f.csv"))
    assert [(r.line, r.messages[0].content) for r in records] == [(2, "two\nlines"), (9, "q"), (11, "q")]
    assert [(e.line, e.reason) for e in bad] == [
        (5, "empty row"),
        (6, "ragged row"),
        (7, "ragged row"),
        (8, "broken CSV"),
        (10, "broken CSV"),
    ]
    assert bad[-1].detail.startswith("10: ")


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
        ('{"question": "q", "answer": {"a": 1}}\n' * 3, "TL-DATA-ALL-BAD"),
        ("{'question': 'q', 'answer': 'a'}\n" * 3, "TL-DATA-JSON"),
        ('{"a": "q", "b": "a"}\n' * 3, "TL-DATA-SHAPE"),
        ("question,answer\nq\nq\n", "TL-DATA-ALL-BAD"),
        ('["a", "b"]', "TL-DATA-SHAPE"),
    ],
)
def test_a_file_that_is_broken_as_a_whole(tmp_path: Path, text: str, code: str) -> None:
    assert code_of(write(tmp_path, text)) == code


def test_all_bad_names_the_first_row_and_the_reason(tmp_path: Path) -> None:
    path = write(tmp_path, "\n" + '{"question": "q", "answer": {"a": 1}}\n' * 3)
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.where == f"{path}:2"
    assert "3 rows" in caught.value.what
    assert "answer: dict" in caught.value.what


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
        ({"user": "question"}, "make no record"),
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


def files(folder: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


LABELLED = "".join(f'{{"text": "t{n}", "label": "{"abbb"[n % 4]}"}}\n' for n in range(400))


def test_a_sample_is_random_stratified_and_the_same_again(tmp_path: Path) -> None:
    path = write(tmp_path, LABELLED)
    records, _ = read(path, sample=40)
    assert Counter(r.label for r in records) == {"a": 10, "b": 30}
    assert [r.line for r in records] == sorted(r.line for r in records)
    assert records == read(path, sample=40)[0]
    file = DataFile(path=str(path), sample=40)
    assert list(formats.read(file, seed=7)) != records
    assert len(read(path, sample=5000)[0]) == 400
    assert Counter(r.label for r in read(path, sample=40, rows="[:100]")[0]) == {"a": 10, "b": 30}
    assert max(r.line for r in read(path, sample=40, rows="[:100]")[0]) <= 100


def test_a_slice_at_the_end_of_the_path(tmp_path: Path) -> None:
    path = write(tmp_path, f"{GOOD}\n" * 10)
    assert [r.line for r in read(f"{path}[2:4]")[0]] == [3, 4]
    assert code_of(f"{path}[2:4]", rows="[:1]") == "TL-DATA-ROWS-TWICE"
    named = write(tmp_path, f"{GOOD}\n" * 10, "x[1:2]")
    assert len(read(named)[0]) == 10


def test_a_folder_is_read_with_its_sides(tmp_path: Path) -> None:
    folder = files(tmp_path / "d", {
        "data/train.jsonl": f"{GOOD}\n" * 3, "data/test.csv": "question,answer\nq,a\n", "more/x": f"[{GOOD}]",
        "README.md": "About it.\n", "meta.json": '{"version": 1}', "empty.csv": "", ".hidden": "x",
    })  # fmt: skip
    (folder / "picture").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    found = formats.survey(DataFile(path=str(folder)))
    assert [(s.label, s.side) for s in found.sources] == [
        ("test.csv", "test"), ("train.jsonl", "train"), ("x", "auto"),
    ]  # fmt: skip
    assert sorted(name for name, _ in found.left_out) == ["README.md", "empty.csv", "meta.json", "picture"]
    assert len(read(folder)[0]) == 5
    assert [r.file for r in read(f"{folder}/train[:2]")[0]] == ["train.jsonl"] * 2
    assert code_of(f"{folder}/validation") == "TL-DATA-MISSING"
    (folder / "more" / "x").write_text(f"[{GOOD}", encoding="utf-8")
    assert code_of(folder) == "TL-DATA-JSON"


def test_folders_of_classes(tmp_path: Path) -> None:
    folder = files(tmp_path / "reviews", {
        "train/pos/1.txt": "Good.\n\nVery, very good.", "train/neg/2.txt": "Bad.", "train/unsup/3.txt": "So.",
        "test/pos/1.txt": "Fine.", "README": "About it.",
    } | {f"test/neg/{n}.txt": f"No. {n}" for n in range(30)})  # fmt: skip
    records, bad = read(folder)
    assert not bad
    assert Counter(r.label for r in records) == {"pos": 2, "neg": 31}
    first = next(r for r in records if r.file == "train/pos/1.txt")
    assert (first.kind, first.line, first.messages[0].content) == ("label", 1, "Good.\n\nVery, very good.")
    assert {r.kind for r in read(folder, task="text")[0]} == {"text"}


def test_text_files_alone_are_texts(tmp_path: Path) -> None:
    folder = files(tmp_path / "books", {"a.txt": "One.\nTwo.\n", "b.md": "A poem\nof lines\n\nand\nmore\n"})
    records, _ = read(folder)
    assert [(r.file, r.line, r.messages[0].content) for r in records] == [
        ("a.txt", 1, "One."), ("a.txt", 2, "Two."), ("b.md", 1, "A poem\nof lines"), ("b.md", 4, "and\nmore"),
    ]  # fmt: skip
    assert {r.kind for r in records} == {"text"}


def test_a_zip_is_its_members(tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("d/train.jsonl", f"{GOOD}\n" * 3)
        out.writestr("d/test.csv.gz", gzip.compress(b"question,answer\nq,a\n"))
        out.writestr("d/README.md", "About it.")
        out.writestr("__MACOSX/d/._x", b"\0\1\2")
    found = formats.survey(DataFile(path=str(path)))
    assert [(s.label, s.side, s.path) for s in found.sources] == [
        ("all.zip!/d/test.csv.gz", "test", path), ("all.zip!/d/train.jsonl", "train", path),
    ]  # fmt: skip
    assert [name for name, _ in found.left_out] == ["all.zip!/d/README.md"]
    records, _ = read(path)
    assert [(r.file, r.line) for r in records][:2] == [("all.zip!/d/test.csv.gz", 2), ("all.zip!/d/train.jsonl", 1)]


def test_a_zip_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "reviews.zip"
    with zipfile.ZipFile(path, "w") as out:
        for name in ("top/pos/1.txt", "top/neg/2.txt", "top/neg/3.txt"):
            out.writestr(name, "Words.")
    assert Counter(r.label for r in read(path)[0]) == {"pos": 1, "neg": 2}


@pytest.mark.parametrize("splits", [False, True])
def test_what_datasets_saved(tmp_path: Path, splits: bool) -> None:
    def save(folder: Path, count: int) -> None:
        folder.mkdir(parents=True)
        table = pa.table({"question": ["q"] * count, "answer": ["a"] * count})
        with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as out:
            out.write_table(table)
        (folder / "dataset_info.json").write_text("{}")
        (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')

    folder = tmp_path / "saved"
    if splits:
        save(folder / "train", 3)
        save(folder / "validation", 2)
        (folder / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    else:
        save(folder, 5)
    sources = formats.sources(DataFile(path=str(folder)))
    assert [s.side for s in sources] == (["train", "validation"] if splits else ["auto"])
    assert len(read(folder)[0]) == 5
    state = folder / ("train/state.json" if splits else "state.json")
    for wrong in (
        '{"_data_files": [{"filename": "../../etc/passwd"}]}',
        '{"_data_files": [{"filename": "gone"}]}',
        "[]",
    ):
        state.write_text(wrong)
        assert code_of(folder) == "TL-DATA-SAVED"


def test_stdin_is_read_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe:
        buffer = io.BytesIO(f"{GOOD}\n{GOOD}\n".encode())

    places._stdin.cache_clear()
    monkeypatch.setattr("sys.stdin", Pipe)
    assert [(r.file, r.line) for r in read("-")[0]] == [("stdin", 1), ("stdin", 2)]
    assert len(read("-")[0]) == 2
    places._stdin.cache_clear()


def test_task_says_what_rows_are(tmp_path: Path) -> None:
    path = write(tmp_path, '{"text": "t", "label": 1}\n' * 3)
    assert {r.kind for r in read(path)[0]} == {"label"}
    assert {r.kind for r in read(path, task="text")[0]} == {"text"}
    assert code_of(path, task="preference") == "TL-DATA-KIND"
    columns = {"text": "text", "label": "label"}
    assert {r.kind for r in read(path, task="text", columns=columns)[0]} == {"text"}
    assert code_of(path, task="chat", columns=columns) == "TL-DATA-COLUMNS"


def test_rows_of_another_kind_are_dropped_by_name(tmp_path: Path) -> None:
    records, bad = read(write(tmp_path, f'{GOOD}\n{GOOD}\n{{"text": "t"}}\n'))
    assert len(records) == 2
    assert [(e.line, e.reason) for e in bad] == [(3, "other shape")]


def test_an_encoding_that_the_recipe_names(tmp_path: Path) -> None:
    path = write(tmp_path, "question,answer\n朝ごはん,はい\n".encode("shift_jis"))
    records, _ = read(path, encoding="shift_jis")
    assert records[0].messages[0].content == "朝ごはん"
    assert code_of(path, encoding="no-such") == "TL-DATA-ENCODING-NAME"


def test_each_sheet_of_a_workbook(tmp_path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append(["question", "answer"])
    book.active.append(["1+1", 2.0])
    book.active.append(["left", None])
    other = book.create_sheet("More")
    other.append(["question", "answer"])
    other.append([" ", None])
    other.append(["q", "a"])
    notes = book.create_sheet("Notes")
    notes.append(["made in May"])
    notes.append(["and in June"])
    book.save(tmp_path / "f")
    found = formats.survey(DataFile(path=str(tmp_path / "f")))
    assert [s.label for s in found.sources] == ["f!/Sheet", "f!/More"]
    assert [name for name, _ in found.left_out] == ["f!/Notes"]
    records, bad = read(tmp_path / "f")
    assert [(r.file, r.line, r.messages[1].content) for r in records] == [
        ("f!/Sheet", 2, "2"), ("f!/Sheet", 3, ""), ("f!/More", 3, "a"),
    ]  # fmt: skip
    assert not bad
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes().replace(b"sheet1", b"sheeX1"))
    assert code_of(tmp_path / "f") in ("TL-DATA-EXCEL", "TL-DATA-ARCHIVE")
