"""Rows that differ in letter case or blanks are no repetitions of each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.made import build, recipe
from tuneloop.data.ledger import entries

CASES = Path(__file__).parents[1] / "cases"


@pytest.mark.parametrize(("name", "rows"), [("06-dedupe-exact/rows.jsonl", 11), ("data/dedupe_case.jsonl", 4)])
def test_case_and_indentation_count(name: str, rows: int, tmp_path: Path) -> None:
    path = CASES / name
    made = build(recipe(path, validation=0), tmp_path)
    assert made.manifest["counts"] | {"rows_in": rows, "train": rows, "dropped": 0} == made.manifest["counts"]
    again = build(recipe(path, {"path": path, "rows": "[:]"}, validation=0, name="twice"), tmp_path)
    assert [e.reason for e in entries(again.path / "ledger.jsonl") if e.action == "dropped"] == ["repeated"] * rows
