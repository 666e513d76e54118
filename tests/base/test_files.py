from __future__ import annotations

import os
from pathlib import Path

import pytest

from tuneloop.base import files
from tuneloop.base.files import draft_of, folder_atomic, sha256_of, write_atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_atomic(file, "one", sync=True)
    with pytest.raises(ZeroDivisionError), draft_of(file) as draft:
        draft.write_text(str(1 / draft.write_text("") if draft.suffix == ".json" else ""))
    assert (file.read_text(), names(tmp_path)) == ("one", ["a.json"])
    assert sha256_of(file) == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"


@pytest.mark.parametrize("alone", [True, False])
def test_a_folder_takes_its_name_whole(tmp_path: Path, alone: bool) -> None:
    target = tmp_path / "in" / "result"
    for text in ("one", "two"):
        with folder_atomic(target, sync=True, alone=alone) as draft:
            (draft / text).write_text(text)
        assert (names(target), names(target.parent)) == ([text], ["result"])
    with pytest.raises(ZeroDivisionError), folder_atomic(target, alone=alone) as draft:
        1 / (draft / "three").write_text("")
    assert (names(target), names(target.parent)) == (["two"], ["result"])


@pytest.mark.parametrize("alone", [True, False])
def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    target, replace = tmp_path / "result", os.replace
    with folder_atomic(target) as draft:
        (draft / "one").write_text("1")

    def refusing(source: Path, to: Path) -> None:
        if to == target and (source / "two").exists():
            raise OSError(5, "Input/output error")
        replace(source, to)

    monkeypatch.setattr(files.os, "replace", refusing)
    with pytest.raises(OSError, match="Input/output"), folder_atomic(target, alone=alone) as draft:
        (draft / "two").write_text("2")
    assert (names(target), names(tmp_path)) == (["one"], ["result"])


@pytest.mark.parametrize("renamed", [True, False])
def test_a_crash_between_the_two_renames_costs_nothing(tmp_path: Path, renamed: bool) -> None:
    """What such a process has left: the old folder under another name, and the new one with its name or without."""
    old = tmp_path / ".result.draft-old"
    old.mkdir()
    (old / "one").write_text("1")
    if renamed:
        (tmp_path / "result").mkdir()
    with pytest.raises(RuntimeError), folder_atomic(tmp_path / "result"):
        raise RuntimeError
    assert (names(tmp_path / "result"), names(tmp_path)) == ([] if renamed else ["one"], ["result"])
    with folder_atomic(tmp_path / "result") as draft:
        (draft / "two").write_text("2")
    assert (names(tmp_path / "result"), names(tmp_path)) == (["two"], ["result"])
