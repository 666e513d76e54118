from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tuneloop.base.errors import RunError
from tuneloop.report import report, run_view

START = 1_763_800_000.0


def lines(entries: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(e) + "\n" for e in entries)


def make_run(workspace: Path) -> Path:
    run = workspace / "runs" / "demo-1"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: demo\n", encoding="utf-8")
    (run / "plan.json").write_text("{}", encoding="utf-8")
    (run / "evaluation.json").write_text("{}", encoding="utf-8")
    return run


def test_time_of_a_resumed_run_leaves_out_the_pause(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    clock = [(START + 12, 2.0), (START + 14, 2.0), (START + 9_002, 2.0), (START + 9_006, 2.0)]
    metrics = [{"step": n, "loss": 1.0, "clock": {"time": at, "seconds": s}} for n, (at, s) in enumerate(clock)]
    (run / "metrics.jsonl").write_text(lines(metrics), encoding="utf-8")
    events = [{"time": START + 9, "event": "started"}, {"time": START + 9_000, "event": "resumed"},
              {"time": START + 9_007, "event": "finished", "seconds": 6.0}]  # fmt: skip
    (run / "events.jsonl").write_text(lines(events), encoding="utf-8")
    assert run_view.spent(run_view.read(run)) == pytest.approx(4 + 6)


def test_time_of_a_run_in_one_go_is_what_training_said(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert run_view.spent(run_view.read(run)) == 0
    events = [{"time": START, "event": "started"}, {"time": START + 99, "event": "finished", "seconds": 59.5}]
    (run / "events.jsonl").write_text(lines(events), encoding="utf-8")
    assert run_view.spent(run_view.read(run)) == 59.5


def test_readings_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    metrics: list[dict[str, Any]] = [
        {"step": 1, "clock": {"memory_gb": 2.0}}, {"step": 2, "clock": {"memory_gb": None}}, {"step": 3},
        {"step": 4, "clock": 7}, {"step": 5, "clock": {"memory_gb": math.nan, "time": math.inf, "seconds": math.nan}},
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text(lines(metrics), encoding="utf-8")
    assert run_view.clock(run_view.read(run), "memory_gb") == [2.0]
    events = [{"time": at, "event": "paused", "step": 4, "cause": "disk"} for at in (math.nan, 1e20, "x")]
    (run / "events.jsonl").write_text(lines(events), encoding="utf-8")
    (run / "evaluation.json").unlink()
    assert report.write(run).is_file()


def test_the_dataset_is_found_from_the_workspace_or_not_at_all(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert run_view.read(run).dataset_path is None
    (run / "dataset.json").write_text('{"path": "datasets/demo/0f3a"}', encoding="utf-8")
    assert run_view.read(run).dataset_path is None
    (tmp_path / "datasets/demo/0f3a").mkdir(parents=True)
    assert run_view.read(run).dataset_path == (tmp_path / "datasets/demo/0f3a").resolve()


def test_no_run_and_a_damaged_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        report.write(tmp_path / "runs" / "nobody-1")
    assert caught.value.code == "TL-RUN-MISSING"
    run = make_run(tmp_path)
    for name, content in (("plan.json", '{"a": '), ("evaluation.json", "[]"), ("recipe.yaml", "a: [")):
        kept = (run / name).read_text(encoding="utf-8")
        (run / name).write_text(content, encoding="utf-8")
        with pytest.raises(RunError) as caught:
            report.write(run)
        assert (caught.value.code, Path(caught.value.where).name) == ("TL-RUN-DAMAGED", name)
        (run / name).write_text(kept, encoding="utf-8")
    assert not (run / "report.html").exists()


def test_the_dataset_of_a_moved_workspace_lies_where_it_lay(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "dataset.json").write_text('{"path": "/gone/with/datasets/demo/0f3a"}', encoding="utf-8")
    assert run_view.read(run).dataset_path is None
    assert run_view.read(run).manifest == {}
    place = tmp_path / "datasets/demo/0f3a"
    place.mkdir(parents=True)
    assert run_view.read(run).dataset_path == place.resolve()
    (place / "manifest.json").write_text('{"counts": {"rows_in": 4, "train": 4}}', encoding="utf-8")
    assert run_view.read(run).cautions() == [
        "Rows left to train on: 4, which is too few to learn more than these rows. Add data."
    ]
