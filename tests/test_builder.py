"""A dataset version: complete, reproducible, found again, never half written."""

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

import numpy as np
import pyarrow.parquet as pq
import pytest

from tuneloop.data import builder, card
from tuneloop.data.dataset import Dataset, open_dataset
from tuneloop.data.fit import Encode
from tuneloop.data.ledger import ACTIONS, Ledger, entries
from tuneloop.data.samples import Sample, Samples
from tuneloop.errors import DataError, MachineError
from tuneloop.recipe import make_recipe
from tuneloop.records import Message, Record
from tuneloop.sections import Recipe

DATA = Path(__file__).parents[2] / "shared" / "data"


def shared(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{path} is missing in CI")
        pytest.skip("../shared/data is not here")
    return path


def characters(records: Sequence[Record]) -> Samples:
    """One token a character: the code points of all turns."""
    texts = [np.array([ord(c) for m in r.messages for c in m.content], np.int32) for r in records]
    return Samples.of([Sample(x, np.ones(len(x), bool), r.id, True) for x, r in zip(texts, records, strict=True)])


def never(records: Sequence[Record]) -> Samples:
    raise AssertionError("tokens were counted again")


def build(recipe: Recipe, workspace: Path, encode: Encode, key: str = "characters") -> Dataset:
    return builder.build(recipe, workspace, encode, key)


def lines(tmp_path: Path, count: int, name: str = "chats.jsonl", word: str = "question") -> Path:
    path = tmp_path / name
    rows = ({"question": f"{word} {n}", "answer": f"answer {n}"} for n in range(count))
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def recipe(*data: Path | dict[str, Any], name: str = "demo", seed: int = 42, **prepare: Any) -> Recipe:
    files = [{"path": str(d)} if isinstance(d, Path) else {**d, "path": str(d["path"])} for d in data]
    raw = {"name": name, "seed": seed, "data": files, "prepare": prepare, "train": {"token_budget": 100_000}}
    return make_recipe(raw)[0]


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
    from tuneloop.data import formats
    from tuneloop.sections import DataFile

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

    write = card.write
    monkeypatch.setattr(card, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        build(recipe(path), tmp_path, characters)
    monkeypatch.setattr(card, "write", write)
    assert [name[:6] for name in folders(tmp_path)] == [".work-"]
    made = build(recipe(path), tmp_path, never)
    assert folders(tmp_path) == [made.hash]


def test_several_processes_at_once_make_one_version(tmp_path: Path) -> None:
    path = lines(tmp_path, 200)
    code = (
        "import sys; from pathlib import Path; from tuneloop.data.builder import build; "
        "from tuneloop.data.samples import Samples; from tuneloop.recipe import make_recipe; import numpy as np; "
        "recipe, _ = make_recipe({'name': 'demo', 'data': sys.argv[1]}); "
        "one = lambda rows: Samples(np.ones(len(rows), 'i4'), np.ones(len(rows), bool), np.arange(len(rows) + 1), "
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
    def strict(records: Sequence[Record]) -> Samples:
        if any(r.messages[0].content == "question 3" for r in records):
            raise DataError("TL-DATA-TEMPLATE", error="no such role")
        return characters(records)

    made = build(recipe(lines(tmp_path, 20)), tmp_path, strict)
    told = [(e.line, e.reason, e.detail) for e in entries(made.path / "ledger.jsonl")]
    assert told == [(4, "template refuses", "no such role")]

    def refuse(records: Sequence[Record]) -> Samples:
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
