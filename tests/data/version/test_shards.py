"""A preparation that is killed at any moment goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.made import build, characters, jsonl, lines, recipe
from tuneloop.base.records import Record
from tuneloop.data.reading import formats
from tuneloop.data.tokens.samples import Sequences
from tuneloop.data.version import builder, shards
from tuneloop.data.version.dataset import Dataset
from tuneloop.recipe.schema import DataFile, PreparePart

WORK = """
import sys, time
from pathlib import Path
from tuneloop.data.version import shards
from tests.made import build, characters, recipe
shards.SIZE = 100
def slow(records):
    time.sleep(0.02)
    return characters(records)
build(recipe(Path(sys.argv[1]), validation=0.2, max_length=64, too_long="split", overlap=0), Path(sys.argv[2]), slow)
"""


def rows(count: int) -> list[dict[str, str]]:
    """Rows of all fates: kept, changed, split, dropped, repeated in another part."""
    out = []
    for n in range(count):
        question = f"question {n % (count - 50)} <br> {random.Random(n % (count - 50)).random()}"
        out.append({"question": question if n % 7 else "{{name}}", "answer": f"answer {n % (count - 50)}"})
    return out


def same(a: Dataset, b: Dataset) -> None:
    assert a.hash == b.hash
    assert (a.path / "ledger.jsonl").read_bytes() == (b.path / "ledger.jsonl").read_bytes()
    for key in ("counts", "steps", "files", "tokens"):
        assert a.manifest[key] == b.manifest[key], key


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_at_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SIZE", 100)
    path = jsonl(tmp_path / "f.jsonl", rows(1200))
    wanted = recipe(path, validation=0.2, max_length=64, too_long="split", overlap=0)
    straight = build(wanted, tmp_path / "straight")
    assert straight.manifest["counts"]["dropped"] > 150
    home = tmp_path / "killed" / "datasets" / "demo"
    command = [sys.executable, "-c", WORK, str(path), str(tmp_path / "killed")]
    chance = random.Random(5)
    kills = seen = 0
    for _ in range(20):
        child = subprocess.Popen(command, cwd=Path(__file__).parents[3], env=os.environ)
        while child.poll() is None and len(list(home.glob(".work-*/part-*"))) <= seen:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.1)  # now it is in the middle of a later part
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.wait()
        seen = len(list(home.glob(".work-*/part-*")))
        if child.returncode == 0:
            break
    assert kills >= 3
    assert child.returncode == 0 or not list(home.glob("[0-9a-f]*"))
    encoded: list[int] = []

    def counted(records: Sequence[Record]) -> Sequences:
        encoded.append(len(records))
        return characters(records)

    again = build(wanted, tmp_path / "killed", counted)
    assert sum(encoded) < 1200 - 100 * min(seen, 3), "finished parts were made again"
    same(again, straight)
    assert not list(home.glob(".*"))


def stop_after(calls: int) -> object:
    def encode(records: Sequence[Record]) -> Sequences:
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise KeyboardInterrupt
        return characters(records)

    return encode


@pytest.mark.parametrize("done", [0, 1, 3, 7])
def test_finished_parts_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int) -> None:
    monkeypatch.setattr(shards, "SIZE", 100)
    path = jsonl(tmp_path / "f.jsonl", rows(800))
    straight = build(recipe(path), tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        build(recipe(path), tmp_path / "stopped", stop_after(done))  # type: ignore[arg-type]
    home = tmp_path / "stopped" / "datasets" / "demo"
    (work,) = home.glob(".work-*")
    assert len(list(work.glob("part-*"))) == done
    same(build(recipe(path), tmp_path / "stopped", stop_after(8 - done)), straight)  # type: ignore[arg-type]
    assert not list(home.glob(".*"))


def test_a_part_that_is_not_whole_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SIZE", 100)
    path = jsonl(tmp_path / "f.jsonl", rows(400))
    straight = build(recipe(path), tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        build(recipe(path), tmp_path / "stopped", stop_after(3))  # type: ignore[arg-type]
    (work,) = (tmp_path / "stopped" / "datasets" / "demo").glob(".work-*")
    (work / "part-00001" / "part.json").unlink()
    same(build(recipe(path), tmp_path / "stopped"), straight)


def test_the_work_of_a_recipe_that_was_changed_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SIZE", 100)
    path = jsonl(tmp_path / "f.jsonl", rows(400))
    with pytest.raises(KeyboardInterrupt):
        build(recipe(path), tmp_path, stop_after(2))  # type: ignore[arg-type]
    home = tmp_path / "datasets" / "demo"
    (work,) = home.glob(".work-*")
    with builder._alone(home, work.name.removeprefix(".work-")):  # somebody is at it
        build(recipe(path, seed=7), tmp_path)
        assert list(home.glob(".work-*")) == [work]
    build(recipe(path, seed=8), tmp_path)
    assert not list(home.glob(".work-*"))


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SIZE", 16)
    told: list[int] = []
    builder.build(recipe(lines(tmp_path, 40)), tmp_path, characters, "characters", told.append)
    assert told == [16, 32]  # a small file needs no word


def test_meta_of_a_part(tmp_path: Path) -> None:
    path = lines(tmp_path, 5)
    file = DataFile(path=str(path), rows=None, repeat=3, split="train")
    raw = shards.raw_rows([(file, formats.sources(file))], 42)
    (part,) = shards.make(tmp_path / "work", raw, PreparePart(), (), characters, lambda n: None)
    assert part.meta == {"rows": {"chats.jsonl": 5}, "counts": [], "kept": 5}
    assert part.table.column("given").to_pylist() == ["train"] * 5
    assert part.table.column("repeat").to_pylist() == [3] * 5
    assert part.samples().records == 5
    assert part.ledger.read_text() == ""


def order(found: shards.SourceGroups) -> list[tuple[str, str | None]]:
    return list(dict.fromkeys((row.outcome.file, row.given) for row in shards.raw_rows(found, 42)))


def entry(path: Path, **more: object) -> tuple[DataFile, list[formats.Source]]:
    file = DataFile.model_validate({"path": str(path), **more})
    return file, formats.sources(file)


def test_files_of_a_given_side_are_read_first(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        lines(tmp_path, 12, f"{name}.jsonl", name)
    found = [entry(tmp_path / "a.jsonl"), entry(tmp_path / "b.jsonl", split="validation"),
             entry(tmp_path / "c.jsonl", split="train"), entry(tmp_path / "d.jsonl", split="test")]  # fmt: skip
    assert order(found) == [("d.jsonl", "test"), ("b.jsonl", "validation"), ("a.jsonl", None), ("c.jsonl", "train")]


def test_the_sides_that_names_in_a_folder_tell(tmp_path: Path) -> None:
    for name in ("train", "test", "validation"):
        lines(tmp_path / "set", 12, f"{name}.jsonl", name)
    lines(tmp_path, 12, "more.jsonl", "more")
    whole = [entry(tmp_path / "more.jsonl"), entry(tmp_path / "set")]
    assert order(whole) == [
        ("test.jsonl", "test"),
        ("validation.jsonl", "validation"),
        ("more.jsonl", None),
        ("train.jsonl", "train"),
    ]
    assert {side for _, side in order([entry(tmp_path / "set", split="train")])} == {"train"}
    sliced = [entry(tmp_path / "set", rows="[:30]")]
    assert [name for name, _ in order(sliced)] == [s.label for s in sliced[0][1]]


def test_a_sample_is_drawn_with_the_seed_of_the_recipe(tmp_path: Path) -> None:
    found = [entry(lines(tmp_path, 200), sample=10)]
    drawn = [[row.outcome.line for row in shards.raw_rows(found, seed)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
