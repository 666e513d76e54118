from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.evaluations import evaluation, scores, texts
from tests.report.test_report import make_run
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.paired import RowScores, compare_rows
from tuneloop.report import comparison_rows
from tuneloop.report.compared import compared
from tuneloop.report.run_view import Folder, read


def run_folder(workspace: Path, name: str, method: str, measured: Evaluation | None) -> Folder:
    """A finished run of this method with this evaluation."""
    run = make_run(workspace / name, name=name)
    (run / "recipe.yaml").write_text(f"name: x\ntrain:\n  method: {method}\n  epochs: 2\n", encoding="utf-8")
    (run / "evaluation.json").unlink()
    if measured is not None:
        measured.write(run)
    return read(run)


def classifier(right: int, total: int = 100) -> Evaluation:
    """A classifier that is right about so many texts, the first of them."""
    rows = tuple(RowScores(str(k), "", {"accuracy": 0.0}, {"accuracy": float(k < right)}, 1.0) for k in range(total))
    after = texts(0.5, right / total, right / total, total)
    return evaluation(texts(1.0, 0.5, 0.5, total), after, held=tuple(map(str, range(total))), row_scores=rows,
                      paired=tuple(compare_rows(rows)))  # fmt: skip


def test_three_runs_stand_side_by_side_with_intervals(tmp_path: Path) -> None:
    folders = [
        run_folder(tmp_path, f"m-{k}", method, classifier(right))
        for k, (method, right) in enumerate((("full", 90), ("lora", 89), ("freeze", 60)))
    ]
    made = compared(folders)
    rows = dict((label, cells) for label, *cells in comparison_rows.figures(made))
    first, second, third = rows["accuracy"]
    assert first.startswith("0.900 [0.8")
    assert second.endswith("not separable")
    assert third.endswith("worse")
    assert [run.settings["train.method"] for run in made.runs] == ["full", "lora", "freeze"]
    assert len(made.pairs) == 3
    assert made.warnings == ()
    assert "m-1 (lora) against m-0 (full), accuracy: not separable" in made.sentences()[0]
    assert "p = 1" in made.sentences()[0]
    json.dumps(made.as_dict(), allow_nan=False)


def test_runs_of_one_method_stand_together(tmp_path: Path) -> None:
    methods = ("lora", "full", "lora")
    folders = [run_folder(tmp_path, f"m-{k}", m, classifier(50 + k)) for k, m in enumerate(methods)]
    assert [run.name for run in compared(folders).runs] == ["m-0", "m-2", "m-1"]


def test_runs_on_other_rows_and_without_an_evaluation_are_warned_of(tmp_path: Path) -> None:
    other = replace(classifier(50), held=("x",))
    old = evaluation(2.0, scores(1.5, bleu=3.0))
    folders = [run_folder(tmp_path, f"m-{k}", "lora", e) for k, e in enumerate((classifier(50), other, old, None))]
    made = compared(folders)
    assert sum("different held-out rows" in text for text in made.warnings) == 2
    assert any("m-3 was not evaluated" in text for text in made.warnings)
    table = comparison_rows.figures(made)
    assert any("1.500" in cell for row in table for cell in row), "an old evaluation has figures without intervals"
    assert "nan" not in str(table).lower()


def test_what_each_run_cost_stands_beside_it(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path, f"m-{k}", "lora", classifier(50)) for k in range(2)]
    rows: dict[str, list[Any]] = {label: cells for label, *cells in comparison_rows.costs(compared(folders))}
    assert rows["trained weights"] == ["2.44 M", "2.44 M (100 %)"]
    assert rows["training time"] == ["1 min 0 s", "1 min 0 s (100 %)"]
