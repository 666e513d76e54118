"""A dataset version: complete, reproducible, found again, never half written.

Over 400 lines: the whole way from raw files to a folder, one promise a test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.made import build, characters, jsonl, lines, recipe
from tests.real import shared
from tuneloop.base.errors import DataError, MachineError
from tuneloop.base.records import Message, Record
from tuneloop.data.card import page
from tuneloop.data.ledger import ACTIONS, Ledger, entries
from tuneloop.data.tokens.samples import Sequences
from tuneloop.data.version.dataset import Dataset, open_dataset
from tuneloop.data.version.digest_cache import Stamps


def never(records: Sequence[Record]) -> Sequences:
    raise AssertionError("tokens were counted again")


def folders(workspace: Path, name: str = "demo") -> list[str]:
    """What is in a dataset's folder, its memory (sources.json, stamps.json) and locks aside."""
    home = workspace / "datasets" / name
    memory = ("sources.json", "stamps.json")
    return sorted(p.name for p in home.iterdir() if p.name not in memory and not p.name.endswith(".lock"))


def test_what_is_written(tmp_path: Path) -> None:
    path = lines(tmp_path, 40)
    made = build(recipe(path, validation=0.25), tmp_path, characters)
    assert made.path == tmp_path / "datasets" / "demo" / made.hash
    assert len(made.hash) == 12
    assert sorted(p.name for p in made.path.iterdir()) == [
        "README.md",
        "card.html",
        "data",
        "ledger.jsonl",
        "manifest.json",
        "profile.json",
        "tokens",
    ]
    tables = {p.stem: pq.read_table(p) for p in (made.path / "data").iterdir()}
    assert {side: table.num_rows for side, table in tables.items()} == {"train": 30, "validation": 10}
    assert tables["train"].column_names == [
        "id", "kind", "file", "line", "repeat", "label", "parent", "messages", "rejected", "tools",
    ]  # fmt: skip
    train = made.records("train")
    assert len(train) == 30
    assert train[0].messages == (
        Message("user", f"question {train[0].line - 1}"),
        Message("assistant", f"answer {train[0].line - 1}"),
    )
    assert made.manifest["counts"] == {
        "rows_in": 40, "train": 30, "validation": 10, "test": 0, "dropped": 0, "changed": 0, "marked": 0, "added": 0,
    }  # fmt: skip
    source = made.manifest["sources"][0]
    assert (source["file"], source["rows"], source["shape"], source["sure"]) == (
        "chats.jsonl",
        40,
        "question_answer",
        1.0,
    )
    assert open_dataset(made.path) == made


def test_tools_calls_and_thoughts_survive(tmp_path: Path) -> None:
    path = shared("llamafactory/reason_tool_use_demo_50.jsonl")
    from tuneloop.data.reading import formats
    from tuneloop.recipe.schema import DataFile

    made = build(recipe(path, max_length=100_000), tmp_path, characters)
    read = {r.id: r for r in formats.read(DataFile(path=str(path), rows=None, repeat=1)) if isinstance(r, Record)}
    kept = made.records("train") + made.records("validation")
    assert {r.id for r in kept} == set(read)
    assert all(r == read[r.id] for r in kept)


def test_rows_add_up_over_real_files(tmp_path: Path) -> None:
    names = ["emollm/data.json", "emollm/self_cognition_EmoLLM.json", "smilechat/dialogs.jsonl",
             "llamafactory/identity.json", "llamafactory/glaive_toolcall_zh_demo.json",
             "openai_messages/toy_chat_fine_tuning.jsonl"]  # fmt: skip
    made = build(recipe(*map(shared, names), max_length=3000), tmp_path, characters)
    counts = made.manifest["counts"]
    assert counts["rows_in"] == 500 + 58 + 150 + 65 + 100 + 5
    assert counts["rows_in"] == counts["train"] + counts["validation"] + counts["dropped"]
    told = Counter((e.step, e.reason, e.action) for e in entries(made.path / "ledger.jsonl"))
    stated = {(s["step"], s["reason"], a): s[a] for s in made.manifest["steps"] for a in ACTIONS if s[a]}
    assert told == stated
    assert sum(n for (*_, action), n in told.items() if action == "dropped") == counts["dropped"]
    reasons = {(s["reason"]): s["dropped"] + s["changed"] for s in made.manifest["steps"]}
    assert reasons["unfilled template"] == 61
    assert reasons["unanswered end removed"] == 27
    assert reasons["tool turn without a call"] == 2
    assert reasons["begins with the assistant"] == 1
    assert reasons["too long"] >= 1
    held = Counter(r.file for r in made.records("validation"))
    assert held["data.json"] == 50
    assert held["dialogs.jsonl"] in (14, 15)


def test_too_long_is_rejected_with_its_length_and_never_cut(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    rows = [{"question": "q", "answer": "a" * n} for n in (15, 16, 999)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    made = build(recipe(path, max_length=16, validation=0), tmp_path, characters)
    assert [len(r.messages[1].content) for r in made.records("train")] == [15]
    told = [(e.line, e.reason, e.detail) for e in entries(made.path / "ledger.jsonl")]
    assert told == [(2, "too long", "17 / 16"), (3, "too long", "1000 / 16")]
    assert made.manifest["tokens"] == {
        "total": 16,
        "longest": 16,
        "mean": 16.0,
        "train": 16,
        "validation": 0,
        "test": 0,
    }


def test_the_system_prompt_is_added_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text(
        '{"question": "q", "answer": "a"}\n{"question": "q2", "answer": "a", "system": "own"}\n'
        '{"question": "q", "answer": "too long"}\n', encoding="utf-8")  # fmt: skip
    made = build(recipe(path, system="x" * 16, max_length=20, validation=0), tmp_path, characters)
    systems = [r.messages[0] for r in made.records("train")]
    assert systems == [Message("system", "x" * 16), Message("system", "own")]
    assert [s["reason"] for s in made.manifest["steps"]] == ["system prompt added", "too long"]
    assert made.manifest["counts"]["changed"] == 2  # the one that went afterwards, too


def test_repeats_are_of_training_rows_alone(tmp_path: Path) -> None:
    one, two = lines(tmp_path, 20, "one.jsonl", "x"), lines(tmp_path, 20, "two.jsonl", "y")
    made = build(recipe({"path": one, "repeat": 3}, two, validation=0.25), tmp_path, characters)
    assert Counter(r.file for r in made.records("train")) == {"one.jsonl": 45, "two.jsonl": 15}
    assert Counter(r.file for r in made.records("validation")) == {"one.jsonl": 5, "two.jsonl": 5}
    assert set(Counter(r.id for r in made.records("train") if r.file == "one.jsonl").values()) == {3}
    assert not {r.id for r in made.records("train")} & {r.id for r in made.records("validation")}
    assert made.manifest["repeat"] == {"one.jsonl": 3, "two.jsonl": 1}


def test_repetitions_go_unless_they_are_wanted(tmp_path: Path) -> None:
    one, two = lines(tmp_path, 20, "one.jsonl"), lines(tmp_path, 20, "two.jsonl")
    made = build(recipe(one, two), tmp_path, characters)
    assert made.manifest["counts"]["dropped"] == 20
    assert {r.file for r in made.records("train")} == {"one.jsonl"}
    kept = build(recipe(one, two, dedupe=False, name="kept"), tmp_path, characters)
    assert len(kept.records("train")) + len(kept.records("validation")) == 40
    assert not {r.id for r in kept.records("train")} & {r.id for r in kept.records("validation")}


def test_an_unchanged_prepare_does_nothing_again(tmp_path: Path) -> None:
    path = lines(tmp_path, 20)
    first = build(recipe(path), tmp_path, characters)
    before = {p: p.stat().st_mtime_ns for p in first.path.iterdir()}
    again = build(recipe(path), tmp_path, never)
    assert again == first
    assert {p: p.stat().st_mtime_ns for p in first.path.iterdir()} == before


@pytest.mark.parametrize("change", ["row", "seed", "max_length", "columns", "repeat", "tokenizer"])
def test_a_change_is_noticed(tmp_path: Path, change: str) -> None:
    path = lines(tmp_path, 20)
    build(recipe(path), tmp_path, characters)
    other = {
        "row": lambda: recipe(lines(tmp_path, 21)),
        "seed": lambda: recipe(path, seed=7),
        "max_length": lambda: recipe(path, max_length=999),
        "columns": lambda: recipe({"path": path, "columns": {"user": "question", "assistant": "answer"}}),
        "repeat": lambda: recipe({"path": path, "repeat": 2}),
        "tokenizer": lambda: recipe(path),
    }[change]()
    with pytest.raises(AssertionError, match="counted again"):
        build(other, tmp_path, never, "another" if change == "tokenizer" else "characters")


def test_the_ledger_is_of_this_time_even_where_the_rows_are_those_of_another(tmp_path: Path) -> None:
    """Broken rows beside the same good ones: the version's hash is the same, and the broken rows are told."""
    path = lines(tmp_path, 20)
    first = build(recipe(path), tmp_path, characters)
    path.write_text("{broken\n" * 5 + path.read_text("utf-8"), encoding="utf-8")
    again = build(recipe(path), tmp_path, characters)
    assert again.path == first.path
    assert again.manifest["counts"]["rows_in"] == 25
    assert again.manifest["counts"]["dropped"] == 5
    assert len((again.path / "ledger.jsonl").read_text("utf-8").splitlines()) == 5


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    path = lines(tmp_path, 20)
    first = build(recipe(path), tmp_path, characters)
    stood = [r.line for r in first.records("train")]
    path.write_text("\n" + path.read_text("utf-8"), encoding="utf-8")
    again = build(recipe(path), tmp_path, characters)
    assert again.hash == first.hash
    assert again.manifest["sources"] != first.manifest["sources"]  # the manifest is of the file as it is now
    assert [r.line for r in again.records("train")] == [line + 1 for line in stood]
    hashes = {
        build(recipe(path, seed=7), tmp_path, characters).hash,
        build(recipe({"path": path, "repeat": 2}), tmp_path, characters).hash,
        build(recipe(lines(tmp_path, 21)), tmp_path, characters).hash,
    }
    assert len(hashes | {first.hash}) == 4
    assert len(folders(tmp_path)) == 4
    assert open_dataset(first.path).hash == first.hash


def test_the_hash_is_the_same_on_every_machine(tmp_path: Path) -> None:
    assert build(recipe(lines(tmp_path, 20)), tmp_path, characters).hash == "9e51b43bb9b9"


@pytest.mark.parametrize("file", ["data/train.parquet", "ledger.jsonl", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "changed"])
def test_a_damaged_version_is_noticed_and_made_again(tmp_path: Path, file: str, damage: str) -> None:
    source = lines(tmp_path, 20)
    with source.open("a") as out:
        out.write("broken\n")
    made = build(recipe(source), tmp_path, characters)
    whole = made.records("train")
    path = made.path / file
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.write_bytes(path.read_bytes().replace(b"e", b"f", 1))
    with pytest.raises(DataError) as caught:
        open_dataset(made.path)
    assert caught.value.code in ("TL-DATA-DAMAGED", "TL-DATA-NO-DATASET")
    again = build(recipe(source), tmp_path, characters)
    assert again.hash == made.hash
    assert again.records("train") == whole
    assert folders(tmp_path) == [made.hash]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 3}', "null"])
def test_a_broken_cache_file_is_no_harm(tmp_path: Path, content: str) -> None:
    path = lines(tmp_path, 20)
    first = build(recipe(path), tmp_path, characters)
    (first.path.parent / "sources.json").write_text(content, encoding="utf-8")
    assert build(recipe(path), tmp_path, characters) == first
    assert build(recipe(path), tmp_path, never) == first


def test_a_cache_that_points_elsewhere_is_not_followed(tmp_path: Path) -> None:
    path = lines(tmp_path, 20)
    first = build(recipe(path), tmp_path, characters)
    cache = first.path.parent / "sources.json"
    (key,) = json.loads(cache.read_text("utf-8"))
    cache.write_text(json.dumps({key: "../../../../x"}), encoding="utf-8")
    assert build(recipe(path), tmp_path, characters) == first


def test_a_failure_while_writing_leaves_no_version_and_the_work_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lines(tmp_path, 20)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    write = page.write
    monkeypatch.setattr(page, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        build(recipe(path), tmp_path, characters)
    monkeypatch.setattr(page, "write", write)
    assert [name[:6] for name in folders(tmp_path)] == [".work-"]
    made = build(recipe(path), tmp_path, never)
    assert folders(tmp_path) == [made.hash]


def test_several_processes_at_once_make_one_version(tmp_path: Path) -> None:
    path = lines(tmp_path, 200)
    code = (
        "import sys; from pathlib import Path; from tuneloop.data.version.builder import build; "
        "from tuneloop.data.tokens.samples import Sequences; from tuneloop.recipe.recipe import make_recipe; import numpy as np; "
        "recipe, _ = make_recipe({'name': 'demo', 'data': sys.argv[1]}); "
        "one = lambda rows: Sequences(np.ones(len(rows), 'i4'), np.ones(len(rows), bool), np.arange(len(rows) + 1), "
        "np.zeros(len(rows), 'i4'), np.ones(len(rows), bool), np.arange(len(rows), dtype='i4'), "
        "np.array([r.id for r in rows], 'S12'), len(rows)); "
        "print(build(recipe, Path(sys.argv[2]), one, 'ones').hash)"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    hashes = {process.communicate(timeout=120)[0].strip() for process in running}
    assert all(process.returncode == 0 for process in running)
    assert len(hashes) == 1
    assert folders(tmp_path) == [*hashes]


def test_no_room_is_said_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines(tmp_path, 20)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(MachineError) as caught:
        build(recipe(path), tmp_path, characters)
    assert caught.value.code == "TL-MACHINE-DISK"
    assert "1 kB" in caught.value.what
    assert not (tmp_path / "datasets").exists()


def test_a_disk_that_fills_up_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines(tmp_path, 20)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Ledger, "close", full)
    with pytest.raises(MachineError) as caught:
        build(recipe(path), tmp_path, characters)
    assert caught.value.code == "TL-MACHINE-DISK"
    assert not [name for name in folders(tmp_path) if not name.startswith(".")]


def test_a_workspace_that_cannot_be_written(tmp_path: Path) -> None:
    path = lines(tmp_path, 20)
    (tmp_path / "workspace").write_text("a file")
    with pytest.raises(MachineError) as caught:
        build(recipe(path), tmp_path / "workspace", characters)
    assert caught.value.code == "TL-MACHINE-FOLDER"


def test_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        lines(tmp_path / folder, 12, "train.jsonl", folder)
    made = build(recipe(tmp_path / "x" / "train.jsonl", tmp_path / "y" / "train.jsonl"), tmp_path, characters)
    assert [s["file"] for s in made.manifest["sources"]] == ["x/train.jsonl", "y/train.jsonl"]
    assert {r.file for r in made.records("validation")} == {"x/train.jsonl", "y/train.jsonl"}


def test_one_file_in_two_slices(tmp_path: Path) -> None:
    path = lines(tmp_path, 40)
    made = build(recipe({"path": path, "rows": "[:30]"}, {"path": path, "rows": "[20:]"}), tmp_path, characters)
    assert made.manifest["counts"]["rows_in"] == 50
    assert made.manifest["counts"]["dropped"] == 10
    assert [s["rows"] for s in made.manifest["sources"]] == [50]


def test_what_the_template_refuses_is_dropped_by_name(tmp_path: Path) -> None:
    def strict(records: Sequence[Record]) -> Sequences:
        if any(r.messages[0].content == "question 3" for r in records):
            raise DataError("TL-DATA-TEMPLATE", error="no such role")
        return characters(records)

    made = build(recipe(lines(tmp_path, 20)), tmp_path, strict)
    told = [(e.line, e.reason, e.detail) for e in entries(made.path / "ledger.jsonl")]
    assert told == [(4, "template refuses", "no such role")]

    def refuse(records: Sequence[Record]) -> Sequences:
        raise DataError("TL-DATA-TEMPLATE", error="no such role")

    with pytest.raises(DataError) as caught:
        build(recipe(lines(tmp_path, 20), name="none"), tmp_path, refuse)
    assert caught.value.code == "TL-DATA-NOTHING-LEFT"
    assert "refuses the dialogue: 20 (no such role)" in caught.value.what


def test_nothing_left_says_why(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"question": "q", "answer": "I am {{name}}"}\n' * 3, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        build(recipe(path), tmp_path, characters)
    assert caught.value.code == "TL-DATA-NOTHING-LEFT"
    assert "template: 3" in caught.value.what
    with pytest.raises(DataError) as caught:
        build(recipe(), tmp_path, characters)
    assert caught.value.code == "TL-DATA-NONE"
    with pytest.raises(DataError) as caught:
        build(recipe(lines(tmp_path, 5), validation=5), tmp_path, characters)
    assert caught.value.code == "TL-DATA-NOTHING-LEFT"
    assert not (tmp_path / "datasets").exists()


def test_no_dataset_here(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no", lines(tmp_path, 1)):
        with pytest.raises(DataError) as caught:
            open_dataset(path)
        assert caught.value.code == "TL-DATA-NO-DATASET"


# --- what concerns all rows together ---


def near(word: str, count: int) -> list[dict[str, str]]:
    """Rows of which any two are nearly equal, and those of another word are not."""
    body = " ".join(f"{word}{n}" for n in range(60))
    return [{"question": f"{body} {n}", "answer": "a"} for n in range(count)]


def told_of(made: Dataset, reason: str) -> list[Any]:
    return [e for e in entries(made.path / "ledger.jsonl") if e.reason == reason]


def test_near_repetitions_are_on_one_side(tmp_path: Path) -> None:
    rows = [row for word in range(60) for row in near(f"w{word}x", 3)]
    for seed in range(3):
        made = build(recipe(jsonl(tmp_path / "f.jsonl", rows), validation=0.2, test=0.1, seed=seed), tmp_path)
        side_of: dict[str, set[str]] = {}
        for record, side, _ in made.rows():
            side_of.setdefault(record.messages[0].content.split("x")[0], set()).add(side)
        assert len(side_of) == 60
        assert {len(sides) for sides in side_of.values()} == {1}
        assert [made.manifest["counts"][side] for side in ("train", "validation", "test")] == [126, 36, 18]


def test_near_repetitions_go_where_that_is_wanted(tmp_path: Path) -> None:
    rows = [row for word in range(20) for row in near(f"w{word}x", 3)]
    made = build(recipe(jsonl(tmp_path / "f.jsonl", rows), dedupe="near", validation=0), tmp_path)
    assert made.manifest["counts"]["train"] == 20
    assert {r.line % 3 for r in made.records("train")} == {1}
    gone = told_of(made, "nearly repeated")
    assert [e.line for e in gone] == [n for n in range(1, 61) if n % 3 != 1]
    assert gone[0].detail.startswith("f.jsonl:1 0.9")


def test_rows_that_are_all_alike_are_split_all_the_same_and_marked(tmp_path: Path) -> None:
    made = build(recipe(jsonl(tmp_path / "f.jsonl", near("w", 40)), validation=0.25), tmp_path)
    assert made.manifest["counts"]["validation"] == 10
    marked = told_of(made, "also in training")
    assert {(e.action, e.step) for e in marked} == {("marked", "split")}
    assert sorted(e.id for e in marked) == sorted(made.ids("validation"))
    assert made.manifest["counts"]["marked"] == 10


def test_a_test_file_keeps_its_rows_and_training_rows_that_repeat_one_go(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", [row for word in range(30) for row in near(f"w{word}x", 2)])
    test = jsonl(tmp_path / "test.jsonl", [*near("w3x", 1), near("w7x", 3)[2], *near("other", 1)])
    made = build(recipe(train, {"path": test, "split": "test"}, validation=0.1), tmp_path)
    assert [(r.file, r.line) for r in made.records("test")] == [("test.jsonl", n) for n in (1, 2, 3)]
    (equal,) = told_of(made, "repeated")
    assert (equal.file, equal.line, equal.detail) == ("train.jsonl", 7, "test.jsonl:1")
    gone = told_of(made, "held out elsewhere")
    assert {(e.action, e.step, e.file) for e in gone} == {("dropped", "dedupe", "train.jsonl")}
    assert [e.line for e in gone] == [8, 15, 16]
    assert gone[0].detail.startswith("test.jsonl:1 0.9")
    assert made.manifest["counts"]["train"] + made.manifest["counts"]["validation"] == 56
    assert {s["file"]: s["split"] for s in made.manifest["sources"]} == {"train.jsonl": "train", "test.jsonl": "test"}
    assert made.manifest["counts"]["validation"] == 6  # of the file that is only named like training data


@pytest.mark.parametrize("dedupe", ["exact", "near", "off"])
def test_test_before_validation_before_training(tmp_path: Path, dedupe: str) -> None:
    files = {
        "train": [*near("ax", 2), *near("bx", 2), *near("cx", 2)],
        "validation": [*near("ax", 3)[1:], near("bx", 3)[2], *near("dx", 1)],
        "test": [near("ax", 4)[3], *near("ex", 1)],
    }
    data = [{"path": jsonl(tmp_path / f"{side}.jsonl", rows), "split": side} for side, rows in files.items()]
    made = build(recipe(*data, dedupe=dedupe, validation=0), tmp_path)
    left = {side: [r.line for r, at, _ in made.rows() if at == side] for side in files}
    assert left == {"train": [5] if dedupe == "near" else [5, 6], "validation": [3, 4], "test": [1, 2]}
    assert made.manifest["counts"]["dropped"] == 12 - sum(map(len, left.values()))


def test_a_chain_of_near_rows_takes_no_row_away_that_is_not_near_itself(tmp_path: Path) -> None:
    """a is near b and b near c, but a is not near c: only b must go when c is held out, and a is not drawn along."""
    words = [f"w{n}" for n in range(120)]
    rows = [{"question": " ".join(words[n : n + 100]), "answer": "a"} for n in (0, 9, 18)]
    others = [row for word in range(20) for row in near(f"o{word}x", 1)]
    train = jsonl(tmp_path / "train.jsonl", [*rows[:2], *others])
    test = jsonl(tmp_path / "test.jsonl", rows[2:])
    made = build(recipe(train, {"path": test, "split": "test"}, validation=0), tmp_path)
    assert [e.line for e in told_of(made, "held out elsewhere")] == [2]
    assert [r.line for r in made.records("train")] == [1, *range(3, 23)]
    assert len(made.records("test")) == 1


def test_one_file_whose_slices_are_of_different_sides(tmp_path: Path) -> None:
    path = lines(tmp_path, 50)
    data = [
        {"path": path, "rows": rows, "split": side}
        for rows, side in (("[:30]", "train"), ("[30:40]", "validation"), ("[40:]", "test"))
    ]
    made = build(recipe(*data, validation=0), tmp_path)
    assert {side: [r.line for r in made.records(side)] for side in ("train", "validation", "test")} == {
        "train": [*range(1, 31)], "validation": [*range(31, 41)], "test": [*range(41, 51)],
    }  # fmt: skip


def test_one_file_in_two_repeats(tmp_path: Path) -> None:
    path = lines(tmp_path, 20)
    data = [{"path": path, "rows": "[:10]", "repeat": 2}, {"path": path, "rows": "[:20]", "repeat": 3}]
    made = build(recipe(*data, dedupe="off", validation=0), tmp_path)
    assert Counter(r.line for r in made.records("train")) == {n: 5 if n <= 10 else 3 for n in range(1, 21)}


def test_the_sides_of_a_folder_are_kept(tmp_path: Path) -> None:
    for name, count in (("train", 20), ("test", 5)):
        lines(tmp_path / "set", count, f"{name}.jsonl", name)
    made = build(recipe(tmp_path / "set", validation=0), tmp_path)
    assert {side: {r.file for r in made.records(side)} for side in ("train", "test")} == {
        "train": {"train.jsonl"}, "test": {"test.jsonl"},
    }  # fmt: skip
    assert len(made.records("test")) == 5


def test_held_out_rows_have_the_labels_in_proportion(tmp_path: Path) -> None:
    rows = [
        {"text": f"text number {n} {'x' * (n % 9)}", "label": "rare" if n % 10 == 0 else "common"} for n in range(200)
    ]
    path = jsonl(tmp_path / "f.jsonl", rows)
    made = build(recipe(path, validation=0.1, test=0.2), tmp_path)
    counts = {side: Counter(r.label for r in made.records(side)) for side in ("train", "validation", "test")}
    assert counts == {
        "train": {"common": 126, "rare": 14}, "validation": {"common": 18, "rare": 2}, "test": {"common": 36, "rare": 4},
    }  # fmt: skip
    assert made.manifest["kinds"] == {"label": 200}
    assert made.manifest["labels"] == {"common": 180, "rare": 20}


def test_real_labels_in_proportion(tmp_path: Path) -> None:
    made = build(recipe(shared("chnsenticorp/train.tsv"), max_length=5000, validation=0.2), tmp_path)
    share = [
        Counter(r.label for r in made.records(side))["1"] / made.manifest["counts"][side]
        for side in ("train", "validation")
    ]
    assert abs(share[0] - share[1]) < 0.01


def test_kinds_that_cannot_be_trained_together(tmp_path: Path) -> None:
    chat = lines(tmp_path, 20)
    label = jsonl(tmp_path / "label.jsonl", [{"text": f"text {n}", "label": n % 2} for n in range(20)])
    text = jsonl(tmp_path / "text.jsonl", [{"text": f"text of {n}"} for n in range(20)])
    pairs = jsonl(tmp_path / "pairs.jsonl", [{"prompt": f"q {n}", "chosen": "a", "rejected": "b"} for n in range(20)])
    for files in ((chat, label), (chat, pairs), (text, label), (pairs, label)):
        with pytest.raises(DataError) as caught:
            build(recipe(*files), tmp_path)
        assert caught.value.code == "TL-DATA-MIXED"
        assert all(path.name in caught.value.what for path in files)
        assert not (tmp_path / "datasets").exists()
    assert build(recipe(chat, text), tmp_path).manifest["kinds"] == {"chat": 20, "text": 20}


def test_nothing_to_train_says_which_setting_it_was(tmp_path: Path) -> None:
    path = lines(tmp_path, 12)
    with pytest.raises(DataError) as caught:
        build(recipe({"path": path, "split": "test"}, validation=0), tmp_path)
    assert "data[].split: test" in caught.value.what
    again = jsonl(tmp_path / "again.jsonl", near("w", 12)[1:])
    held = jsonl(tmp_path / "held.jsonl", near("w", 12)[:1])
    with pytest.raises(DataError) as caught:
        build(recipe(again, {"path": held, "split": "test"}, validation=0), tmp_path)
    assert caught.value.code == "TL-DATA-NOTHING-LEFT"
    assert "test or validation: 11" in caught.value.what


def test_the_digests_of_a_version_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version is hashed as a whole when it is looked at again, and the third time it is not."""
    monkeypatch.setattr("tuneloop.data.version.digest_cache.GRAIN", -(10**12))
    path = lines(tmp_path, 20)
    made = build(recipe(path), tmp_path)
    build(recipe(path), tmp_path)
    known = Stamps(made.path.parent / "stamps.json")._known
    assert {Path(name).name for name in known} == {"chats.jsonl", "train.parquet", "validation.parquet", "ledger.jsonl"}


@pytest.mark.parametrize(
    "name",
    [
        "emollm/data.json",
        "llamafactory/c4_demo.jsonl",
        "imdb/train.csv",
        "llamafactory/dpo_zh_demo.json",
        "llamafactory/kto_en_demo.json",
        "llamafactory/glaive_toolcall_zh_demo.json",
    ],
)
def test_real_rows_of_every_kind(tmp_path: Path, name: str) -> None:
    made = build(recipe(shared(name), max_length=2000, too_long="split", validation=0.1), tmp_path)
    counts = made.manifest["counts"]
    out = counts["train"] + counts["validation"] + counts["dropped"]
    assert counts["rows_in"] + counts["added"] == out
    key = made.samples("train", "characters", never)
    assert key.records == counts["train"]
    assert [n.decode() for n in dict.fromkeys(key.names.tolist())] == [r.id for r in made.records("train")]


# --- other tools ---


def test_datasets_loads_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="the package datasets is not installed")
    test = lines(tmp_path, 7, "test.jsonl", "other words for it, number")
    path = shared("llamafactory/glaive_toolcall_zh_demo.json")
    made = build(recipe(path, {"path": test, "split": "test"}, max_length=100_000, validation=0.2), tmp_path)
    code = (
        "import json, sys, datasets; found = datasets.load_dataset(sys.argv[1]); "
        "print(json.dumps({side: [[r['id'], r['label'], r['messages'], r['tools']] for r in rows] "
        "for side, rows in found.items()}))"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(made.path)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"train", "validation", "test"}
    for side, rows in found.items():
        records = made.records(side)
        assert [row[0] for row in rows] == [r.id for r in records]
        assert [[(m["role"], m["content"]) for m in row[2]] for row in rows] == [
            [(m.role, m.content) for m in r.messages] for r in records
        ]
        assert [row[3] for row in rows] == [json.dumps(r.tools, ensure_ascii=False) if r.tools else "" for r in records]


def test_dvc_takes_a_version(tmp_path: Path) -> None:
    dvc = shutil.which("dvc")
    if dvc is None:
        pytest.skip("the command dvc is not installed")
    made = build(recipe(lines(tmp_path, 20)), tmp_path)
    env = os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(tmp_path / "site"), "HOME": str(tmp_path)}

    def run(*command: str) -> str:
        done = subprocess.run([dvc, *command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("init", "--no-scm", "-q")
    folder = made.path.relative_to(tmp_path).as_posix()
    run("add", "-q", folder)
    shutil.rmtree(made.path)
    run("checkout", "-q", f"{folder}.dvc")
    assert open_dataset(made.path) == made
    assert "Data and pipelines are up to date" in run("status")
    assert build(recipe(tmp_path / "chats.jsonl"), tmp_path, never) == made


# --- size ---

PEAK = """
import resource, sys
from pathlib import Path
import numpy as np
from tests.made import build, recipe
from tuneloop.data.tokens.samples import Sequences
def ones(rows):
    n = len(rows)
    return Sequences(np.ones(n, "i4"), np.ones(n, bool), np.arange(n + 1), np.zeros(n, "i4"), np.ones(n, bool),
                   np.arange(n, dtype="i4"), np.array([r.id for r in rows], "S12"), n)
build(recipe(Path(sys.argv[1]), name="warm", validation=0.1), Path(sys.argv[3]), ones)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = build(recipe(Path(sys.argv[2]), validation=0.1), Path(sys.argv[3]), ones)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, sum(made.manifest["counts"][s] for s in ("train", "validation")))
"""


def peak(tmp_path: Path, count: int) -> float:
    """MB by which a preparation of `count` short rows raises the peak of a process that has done a small one."""
    pytest.importorskip("resource", reason="this system does not tell the peak of a process")
    words = ["red", "green", "blue", "black", "white"]
    rows = (
        {"question": f"What is {n} and {n * 7919 % 10007} {words[n % 5]}?", "answer": f"It is {n * n} {n}."}
        for n in range(count)
    )
    small, large = lines(tmp_path, 5000, "small.jsonl"), jsonl(tmp_path / "large.jsonl", rows)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PEAK, str(small), str(large), str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    before, after, kept = map(int, done.stdout.split())
    assert kept == count
    return (after - before) * (1 if sys.platform == "darwin" else 1024) / 1e6


@pytest.mark.slow
def test_two_hundred_thousand_rows_need_little_memory(tmp_path: Path) -> None:
    """1.5 kB a row beyond what a small preparation needs: their places, names, sketches and 128-byte neighbourhoods."""
    assert peak(tmp_path, 200_000) < 300
