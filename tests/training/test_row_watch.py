"""The losses of training rows: in the run's folder, through a resumption, and as a list of suspicious rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.assembled import assembled
from tests.made import build, jsonl, recipe
from tests.training.test_session import Sessions, lines
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.loader import Steps
from tuneloop.data.batches.plan import BatchPlan
from tuneloop.data.version.dataset import Dataset
from tuneloop.model.checkpoint import State
from tuneloop.monitor.alerts import Alert, words
from tuneloop.recipe.recipe import make_recipe
from tuneloop.runs.run import Run
from tuneloop.tasks.task import TaskContext
from tuneloop.training.finite import Finite
from tuneloop.training.row_watch import LIST_FILE, ROWS_FILE, RowWatch
from tuneloop.training.session import session
from tuneloop.training.step_result import StepResult

ROWS, WRONG, BATCH = 120, 12, 8


@pytest.fixture
def sessions(tiny_model: Path, tmp_path: Path) -> Sessions:
    return Sessions(tiny_model, tmp_path)


def test_each_row_is_there_once_a_pass_and_a_resumed_run_has_the_same_lines(sessions: Sessions) -> None:
    settings: dict[str, Any] = {
        "epochs": 2, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 5, "logging_strategy": "epoch",
    }  # fmt: skip
    run, recipe = sessions.begin(**settings)
    sessions.go(run, recipe)
    written = lines(run.path / ROWS_FILE)
    assert [line["step"] for line in written] == list(range(1, 11))
    for half in (written[:5], written[5:]):
        assert sorted(row for line in half for row in line["rows"]) == list(range(20))
    metrics = {m["step"]: m["loss"] for m in lines(run.metrics) if "loss" in m}
    weights = sessions.samples.labels
    for step in (5, 10):
        line = written[step - 1]
        mean = np.average(line["losses"], weights=weights[line["rows"]])
        assert mean == pytest.approx(metrics[step], abs=1e-3)
    other, recipe = sessions.begin(**settings)
    shutil.copytree(run.checkpoints / "step-6", other.checkpoints / "step-6")
    for name in ("metrics.jsonl", ROWS_FILE):
        shutil.copy(run.path / name, other.path / name)
    sessions.go(other, recipe, resume=True)
    assert (other.path / ROWS_FILE).read_bytes() == (run.path / ROWS_FILE).read_bytes()


def test_a_recipe_may_switch_it_off(sessions: Sessions) -> None:
    run, _ = sessions.begin()
    raw = {"name": "s", "model": str(sessions.folder), "watch": {"rules": {"labels": {"enabled": False}}}}
    recipe, _ = make_recipe({**raw, "train": {"max_steps": 1, "batch_size": 4}})
    context = TaskContext(recipe.train, sessions.tokenizer)
    session(run, assembled(recipe, sessions.folder, sessions.samples, context=context))
    assert not (run.path / ROWS_FILE).exists()


class Watched:
    """A dataset of labelled texts, and a watch that is handed the losses of steps one by one."""

    def __init__(self, folder: Path) -> None:
        texts = ({"text": f"text number {n}", "label": "ab"[n % 2]} for n in range(ROWS))
        file = {"path": jsonl(folder / "texts.jsonl", texts), "repeat": 1, "task": "label"}
        self.dataset: Dataset = build(recipe(file, validation=0), folder)
        self.records = self.dataset.records("train")
        samples = self.dataset.samples("train", "characters", lambda records: pytest.fail("tokenised already"))
        label = np.array([int(r.label == "b") for r in self.records], np.int64)
        members = np.arange(len(samples))[:, None]
        self.examples = Examples(samples, members, np.ones(len(samples)), {"label": label})
        self.plan = BatchPlan(samples.lengths, BATCH, 10_000, seed=1)
        self.run, self.alerts = Run(folder), list[Alert]()
        self.wrong = {n for n, r in enumerate(self.records) if r.line <= WRONG}
        self.rng = np.random.default_rng(0)

    def watch(self) -> RowWatch:
        return RowWatch(
            self.run, self.dataset, self.examples, self.plan.steps_per_epoch, lambda step: step % 4 == 0,
            self.alerts.append,
        )  # fmt: skip

    def train(self, watch: RowWatch, first: int, last: int, wrong: float = 2.5) -> None:
        finite = Finite(None, torch.device("cpu"))
        steps = Steps(self.plan, self.examples, first, last)
        for k in range(len(steps)):
            step = steps[k]
            lost = [torch.tensor([self.loss(row, first + k, wrong) for row in b.members]) for b in step.batches]
            result = StepResult(step, torch.tensor(1.0), torch.tensor(1.0), 1e-3, finite, per_item=tuple(lost))
            watch.on_step(State(step=first + k + 1), result)

    def loss(self, row: int, step: int, wrong: float) -> float:
        if step < self.plan.steps_per_epoch:
            return 0.7
        return float(self.rng.normal(wrong, 0.1) if row in self.wrong else self.rng.gamma(2.0, 0.05))


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_suspicious_rows_are_told_once_with_file_and_line(watched: Watched) -> None:
    epoch = watched.plan.steps_per_epoch
    watch = watched.watch()
    watched.train(watch, 0, epoch)
    assert not watched.alerts
    assert not (watched.run.path / LIST_FILE).exists()
    watched.train(watch, epoch, 3 * epoch)
    (alert,) = watched.alerts
    assert (alert.rule, alert.level, alert.step, alert.since) == ("labels", "watch", 2 * epoch, epoch + 1)
    assert (alert.facts["rows"], alert.facts["of"]) == (WRONG, ROWS)
    assert len(alert.facts["examples"]) == 10
    listed = lines(watched.run.path / LIST_FILE)
    assert sorted(line["line"] for line in listed) == list(range(1, WRONG + 1))
    by_line = {record.line: record for record in watched.records}
    for line in listed:
        record = by_line[line["line"]]
        assert (line["file"], line["id"], line["label"]) == (record.file, record.id, record.label)
        assert line["loss"] > 2 > line["median"]
    assert f"{by_line[1].file}:" in words(alert).what
    assert "?" not in words(alert).what


def test_what_was_told_is_not_told_again_after_a_resumption(watched: Watched) -> None:
    epoch = watched.plan.steps_per_epoch
    watch = watched.watch()
    watched.train(watch, 0, 2 * epoch + 4)
    assert len(watched.alerts) == 1
    again = watched.watch()
    assert [np.nan_to_num(a).tolist() for a in again.losses] == [np.nan_to_num(a).tolist() for a in watch.losses]
    watched.train(again, 2 * epoch + 4, 3 * epoch)
    assert len(watched.alerts) == 1


def test_losses_wait_until_they_are_due(watched: Watched) -> None:
    watch = watched.watch()
    watched.train(watch, 0, 3)
    assert not (watched.run.path / ROWS_FILE).exists()
    watched.train(watch, 3, 6)
    assert [line["step"] for line in lines(watched.run.path / ROWS_FILE)] == [1, 2, 3, 4]
    watch.on_end(State(step=6))
    assert [line["step"] for line in lines(watched.run.path / ROWS_FILE)] == [1, 2, 3, 4, 5, 6]


def test_rows_that_are_all_learned_make_no_list(watched: Watched) -> None:
    watch = watched.watch()
    watched.train(watch, 0, 3 * watched.plan.steps_per_epoch, wrong=0.2)
    assert not watched.alerts
    assert not (watched.run.path / LIST_FILE).exists()


def test_a_line_of_the_list_names_a_repeated_row_once(tmp_path: Path) -> None:
    file = {"path": jsonl(tmp_path / "t.jsonl", ({"text": f"t {n}", "label": "ab"[n % 2]} for n in range(6))),
            "repeat": 3, "task": "label"}  # fmt: skip
    dataset = build(recipe(file, validation=0), tmp_path)
    every = dataset.records("train")
    assert len(every) == 18
    assert dataset.training_rows([17, 4, 4]) == {4: every[4], 17: every[17]}
    assert dataset.training_rows([]) == {}


def test_events_hold_nothing_but_json(watched: Watched) -> None:
    watch = watched.watch()
    watched.train(watch, 0, 2 * watched.plan.steps_per_epoch)
    assert Alert.of(json.loads(json.dumps(watched.alerts[0].as_event()))) == watched.alerts[0]
