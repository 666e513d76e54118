"""The folder that an export is made in: nothing of it stays, and only what nobody writes any more is removed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tuneloop.exports.draft import UNLOCKED_SECONDS, draft_folder, remove_abandoned


def abandoned(to: Path, *, lock: bool, age: float = 0.0) -> Path:
    """What a process leaves that was ended at once."""
    draft = to.with_name(f".{to.name}.01234567.partial")
    draft.mkdir()
    (draft / "model.safetensors").write_bytes(b"half")
    if lock:
        draft.with_name(f"{draft.name}.lock").touch()
    for path in (draft / "model.safetensors", draft):
        os.utime(path, (time.time() - age, time.time() - age))
    return draft


def test_nothing_stays(tmp_path: Path) -> None:
    with draft_folder(tmp_path / "out") as draft:
        (draft / "file").touch()
        assert draft.name.startswith(".out.")
    with pytest.raises(KeyboardInterrupt), draft_folder(tmp_path / "out"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_draft_takes_its_name(tmp_path: Path) -> None:
    with draft_folder(tmp_path / "out") as draft:
        (draft / "file").touch()
        draft.rename(tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]


def test_one_that_is_being_written_stays(tmp_path: Path) -> None:
    with draft_folder(tmp_path / "out") as draft:
        remove_abandoned(tmp_path / "out")
        assert draft.is_dir()
        with draft_folder(tmp_path / "out") as second:
            remove_abandoned(tmp_path / "out")
            assert second.is_dir()


def test_one_whose_process_is_gone_is_removed(tmp_path: Path) -> None:
    to = tmp_path / "out"
    abandoned(to, lock=True)
    others = [abandoned(tmp_path / name, lock=True) for name in ("other", "out.more")]
    remove_abandoned(to)
    assert sorted(p for p in tmp_path.iterdir() if p.suffix == ".partial") == sorted(others)
    assert not list(tmp_path.glob(".out.0*"))


def test_without_a_lock_it_goes_by_its_age(tmp_path: Path) -> None:
    """Of an earlier version, or on a disk that has no locks."""
    draft = abandoned(tmp_path / "out", lock=False)
    remove_abandoned(tmp_path / "out")
    assert draft.is_dir()
    for path in (draft / "model.safetensors", draft):
        os.utime(path, (0, time.time() - UNLOCKED_SECONDS - 60))
    remove_abandoned(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    remove_abandoned(tmp_path / "nowhere" / "out")
    assert list(tmp_path.iterdir()) == []
