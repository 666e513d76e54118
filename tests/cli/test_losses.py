"""The panel after `prepare`: printed where many rows are gone, with what to change; silent where all is well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuneloop.base.records import LedgerEntry
from tuneloop.cli import losses
from tuneloop.data import ledger
from tuneloop.data.version.dataset import Dataset
from tuneloop.recipe.recipe import make_recipe


def made(folder: Path, dropped: list[LedgerEntry], *, train: int, held: int = 9) -> Dataset:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(e.as_dict()) + "\n" for e in dropped]
    (folder / "ledger.jsonl").write_text("".join(lines), encoding="utf-8")
    reasons = {e.reason: sum(o.reason == e.reason for o in dropped) for e in dropped}
    manifest: dict[str, Any] = {
        "counts": {"rows_in": train + held + len(dropped), "train": train, "validation": held, "dropped": len(dropped)},
        "steps": [{"step": "x", "reason": r, "dropped": n, "changed": 0} for r, n in reasons.items()],
    }
    return Dataset(folder, "x", "0" * 12, manifest)


def gone(reason: str, n: int, detail: str = "") -> list[LedgerEntry]:
    return [LedgerEntry("dropped", "x", reason, "a.jsonl", i + 1, detail=detail) for i in range(n)]


def test_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert losses.warn(made(tmp_path, gone("repeated", 10), train=81), make_recipe({})[0]) == []
    assert capsys.readouterr().err == ""


def test_where_the_model_sets_the_length_no_longer_one_is_proposed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses.warn(made(tmp_path, gone("too long", 44, "9500 / 8192"), train=40), make_recipe({})[0])
    said = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert "would keep" not in said
    assert "prepare.too_long" in said


def test_many_rows_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = [*gone("too long", 44, "1500 / 1024"), *gone("too long", 2, "99999 / 1024"), *gone("other shape", 5)]
    told = losses.warn(made(tmp_path, lost, train=40), make_recipe({"prepare": {"max_length": 1024}})[0])
    said = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert "51 of 100 rows were dropped" in told[0]
    for words in ("longer than max_length (46 rows)", f"{ledger.words()['other shape']} (5 rows)",
                  "prepare.max_length: 1536 would keep 44 more.", "data[].columns"):  # fmt: skip
        assert words in said
    assert "Dropped rows: 46 (longer than max_length). prepare.too_long" in said, "the cause before the remedy"
    assert "ledger.jsonl" in said
    assert "Nothing was held out" not in said


def test_nothing_is_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = made(tmp_path, [], train=50, held=0)
    assert "Nothing was held out" in losses.warn(dataset, make_recipe({})[0])[0]
    capsys.readouterr()
    assert losses.warn(dataset, make_recipe({"prepare": {"validation": 0}})[0]) == [], "asked for, so no news"
