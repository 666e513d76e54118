"""What a person calls a version, and which one is meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.versions_on_disk import build, chat
from tuneloop.base.errors import DataError
from tuneloop.data.version.find import locate


def _older(folder: Path, year: int) -> None:
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**manifest, "created": f"{year}-01-01T00:00:00+00:00"}), encoding="utf-8")


def test_names(tmp_path: Path) -> None:
    first = build(tmp_path, [chat("a?", f"b {n}") for n in range(12)])
    second = build(tmp_path, [chat("a?", f"c {n}") for n in range(12)])
    _older(first.path, 2020)
    assert locate(tmp_path, "talk").hash == second.hash
    _older(second.path, 2019)
    assert locate(tmp_path, "talk").hash == first.hash
    for name in (f"talk/{second.hash}", second.hash, second.hash[:8], f"talk/{second.hash[:8]}", str(second.path)):
        assert locate(tmp_path, name).hash == second.hash


@pytest.mark.parametrize("name", ["nothing", "", "other/abc", "talk/zzz", "../..", "/"])
def test_what_is_no_version_is_refused_and_the_known_ones_are_named(tmp_path: Path, name: str) -> None:
    made = build(tmp_path, [chat("a?", f"b {n}") for n in range(12)])
    with pytest.raises(DataError) as caught:
        locate(tmp_path, name)
    assert caught.value.code == "TL-DATA-VERSION"
    assert f"talk/{made.hash}" in str(caught.value)


def test_an_empty_workspace(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names 0 dataset versions"):
        locate(tmp_path, "talk")


def test_a_broken_version_is_said_to_be_broken(tmp_path: Path) -> None:
    made = build(tmp_path, [chat("a?", f"b {n}") for n in range(12)])
    (made.path / "ledger.jsonl").write_text("x")
    with pytest.raises(DataError) as caught:
        locate(tmp_path, "talk")
    assert caught.value.code == "TL-DATA-DAMAGED"
