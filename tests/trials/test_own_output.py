"""What tuneloop wrote below a folder is not read as data, and that is said; a person's own folders are read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.made import lines
from tuneloop.cli.main import app
from tuneloop.data.reading import formats, places
from tuneloop.recipe.schema import DataFile

OLD = Path(__file__).parents[1] / "old_workspace" / "workspace"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which everything was made, beside rows of a person in folders with the same names."""
    folder = tmp_path_factory.mktemp("own") / "work"
    shutil.copytree(OLD, folder, ignore=shutil.ignore_patterns("rows", "base"))
    for own in (".", "datasets", "runs/notes", "models", "exports"):
        lines(folder / own, 4, "mine.jsonl", f"in {own}")
    (folder / "run.yaml").write_text("name: run\nseed: 42\nmodel:\n  name: x\n", encoding="utf-8")
    return folder


MINE = ["datasets/mine.jsonl", "exports/mine.jsonl", "mine.jsonl", "models/mine.jsonl", "runs/notes/mine.jsonl"]


@pytest.mark.parametrize(("path", "read"), [
    ("", MINE), ("**/*", MINE), ("datasets", MINE[:1]), ("*/*.jsonl", [MINE[0], MINE[1], MINE[3]]), ("*.jsonl", ["mine.jsonl"]),
])  # fmt: skip
def test_what_tuneloop_wrote_is_left_out(path: str, read: list[str], here: Path) -> None:
    file = DataFile(path=str(here / path))
    assert sorted(p.relative_to(here).as_posix() for p in formats.paths(file)) == read
    found = formats.survey(file)
    assert sorted(s.path.relative_to(here).as_posix() for s in found.sources) == read
    said = places.own(file)
    assert len(said) == (0 if path.endswith("jsonl") else 1)
    assert len(found.left_out) == len(said)


def test_prepare_of_a_folder_twice_reads_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines(tmp_path, 12, "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    words = ["prepare", ".", "--model", str(OLD / "base" / "llama")]
    first, second = (CliRunner().invoke(app, words) for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0), second.stderr
    assert "Not read" not in first.stderr
    assert second.stderr.count("files that tuneloop wrote: datasets, run.yaml") == 1
    assert "Rows read: 12." in first.stdout
    assert "Rows read: 12." in second.stdout
