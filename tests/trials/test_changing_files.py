"""A file that changes while it is read gives no version, and nothing is remembered; journals lose no line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.made import build, characters, lines, recipe
from tuneloop.base.errors import DataError
from tuneloop.data.reading import formats
from tuneloop.data.version import shards
from tuneloop.runs.journal import Journal


def _grown(path: Path) -> None:
    with path.open("a", encoding="utf-8") as out:
        out.write('{"question": "new", "answer": "new"}\n')


def _same_size(path: Path) -> None:
    """As many bytes, and the old time of the last change."""
    stat = path.stat()
    path.write_bytes(path.read_bytes().replace(b"answer 7", b"ANSWER 7"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _replaced(path: Path) -> None:
    fresh = path.with_name("fresh")
    fresh.write_text('{"question": "q", "answer": "a"}\n' * 30, encoding="utf-8")
    fresh.replace(path)


def _gone(path: Path) -> None:
    path.unlink()


def _broken(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 no more")


@pytest.mark.parametrize("when", ["while rows are read", "between looking and reading"])
@pytest.mark.parametrize("change", [_grown, _same_size, _replaced, _gone, _broken])
def test_a_file_that_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], when: str
) -> None:
    path, changed = lines(tmp_path, 40), []

    def once() -> None:
        if not changed:
            changed.append(True)
            change(path)

    place, name = (shards, "fit_lengths") if when.startswith("while") else (formats, "survey")
    real = getattr(place, name)

    def then_changed(*args: Any, **more: Any) -> Any:
        out = real(*args, **more)
        once()
        return out

    monkeypatch.setattr(place, name, then_changed)
    with pytest.raises(DataError) as caught:
        build(recipe(path), tmp_path)
    assert caught.value.code in ("TL-DATA-CHANGED", "TL-DATA-UNREADABLE")
    assert caught.value.code == "TL-DATA-CHANGED" or change is _gone
    assert not (tmp_path / "datasets").exists()
    monkeypatch.undo()
    if change in (_grown, _same_size, _replaced):
        made = build(recipe(path), tmp_path)
        assert made.manifest["counts"]["rows_in"] == (41 if change is _grown else 30 if change is _replaced else 40)


def test_a_file_of_which_only_the_time_changes_is_the_same(tmp_path: Path) -> None:
    path = lines(tmp_path, 40)

    def touched(records: Any) -> Any:
        os.utime(path)
        return characters(records)

    assert build(recipe(path), tmp_path, touched).manifest["counts"]["rows_in"] == 40


# --- journals ---

SIGNS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\r", "\n"]


def test_a_journal_loses_no_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "samples.jsonl")
    entries = [{"step": n, "answer": f"a{sign}b"} for n, sign in enumerate(SIGNS)]
    for entry in entries:
        journal.write(entry)
    with journal.path.open("ab") as file:
        file.write('{"step": 99, "answer": "tor\u2028'.encode()[:-1])
    assert list(journal.lines()) == entries
    journal.rewind(6)
    assert list(journal.lines()) == entries[:7]
    journal.write({"step": 7})
    assert [json.loads(line)["step"] for line in journal.path.read_bytes().split(b"\n") if line] == list(range(8))
