from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuneloop import pipeline
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.row_places import by_place, row_places
from tuneloop.recipe.recipe import make_recipe
from tuneloop.runs.run import Run


@pytest.fixture
def cut(tiny_model: Path, tmp_path: Path) -> list[Run]:
    """Two run folders whose datasets hold out the same lines of one file, cut to another length each."""
    text = "The film is long and slow and I liked it very much in the end because of the music and the sea. " * 3
    rows = [{"text": f"{n} {text}", "label": "ab"[n % 2]} for n in range(20)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    held = tmp_path / "held.jsonl"
    held.write_text(
        "".join(json.dumps({**row, "text": f"held {row['text']}"}) + "\n" for row in rows), encoding="utf-8"
    )
    runs = []
    for length in (32, 64):
        raw: dict[str, Any] = {
            "name": f"cut{length}", "model": {"name": str(tiny_model)}, "train": {"task": "classify"},
            "data": [str(file), {"path": str(held), "split": "validation"}],
            "prepare": {"max_length": length, "too_long": "cut_right"},
        }  # fmt: skip
        dataset = pipeline.prepare(make_recipe(raw)[0], workspace=tmp_path)
        run = Run(tmp_path / "runs" / f"cut{length}-1")
        run.path.mkdir(parents=True)
        run.write("dataset.json", {"path": str(dataset.path.resolve())})
        runs.append(run)
    return runs


def test_rows_that_were_cut_otherwise_are_the_same_rows(cut: list[Run]) -> None:
    first, second = (row_places(run) for run in cut)
    assert len(first) == len(second) == 20
    assert not first.keys() & second.keys(), "their ids are of what was left of them"
    assert set(first.values()) == set(second.values())
    one, two = by_place(cut, [Evaluation(held=tuple(first)), Evaluation(held=tuple(second))])
    assert set(one.held or ()) == set(two.held or ()) == set(first.values())


def test_equal_ids_stay_and_a_dataset_that_is_gone_changes_nothing(cut: list[Run], tmp_path: Path) -> None:
    same = [Evaluation(held=("a",)), Evaluation(held=("a",))]
    assert by_place(cut, same) == same
    gone = Run(tmp_path / "runs" / "gone-1")
    gone.path.mkdir(parents=True)
    other = [Evaluation(held=("a",)), Evaluation(held=("b",))]
    assert row_places(gone) == {}
    assert by_place([cut[0], gone], other) == other
