from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.monitor.test_notices import EXPLODING
from tuneloop.monitor.live import Follower, HeldFigures, TrainingFigures, figures_of
from tuneloop.runs.journal import PIECE, Journal
from tuneloop.runs.run import Run, held_alone

START = 1_763_800_000.0


def training(step: int, **more: Any) -> dict[str, Any]:
    clock = {
        "time": START + 2 * step, "seconds": 1.0, "tokens_per_second": 400.0, "memory_gb": 2.1,
        "phases": {"data": 0.1, "forward": 0.3, "backward": 0.5, "optimizer": 0.1}, "process_gb": 2.0,
        "memory_total_gb": 15.6, "memory_free_gb": 1.0, "cpu": 0.9, "disk_free_gb": 100.0,
    }  # fmt: skip
    line = {
        "step": step, "loss": 3 - step / 50, "smooth": 3.1 - step / 50, "grad_norm": 1.0, "learning_rate": 1e-4,
        "grad_groups": {"blocks 0-9": 0.5}, "sources": {"a.jsonl": 2.0, "b.csv": 3.0}, "tokens": 800, "padding": 0.2,
    }  # fmt: skip
    return {**line, "clock": clock, **more}


def written(path: Path, lines: list[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that has made 10 of 30 steps."""
    folder = tmp_path / "runs" / "demo-1"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("name: demo\nmodel: smollm2\ndata: [a.jsonl]\n", encoding="utf-8")
    (folder / "plan.json").write_text('{"data": {"steps": 33}}', encoding="utf-8")
    written(folder / "events.jsonl", [{"time": START, "event": "started", "step": 0, "total": 30}])
    written(folder / "metrics.jsonl", [training(step) for step in range(1, 11)])
    written(folder / "metrics.jsonl", [{"step": 10, "eval_loss": 2.9, "eval_error": 0.1, "eval_rows": 8, "clock": {}}])
    return Run(folder)


def looked(follower: Follower) -> Any:
    follower.look()
    return follower.state(time.time())


def test_a_line_is_read_whole_and_an_older_one_as_far_as_it_goes() -> None:
    whole = figures_of(training(3))
    assert isinstance(whole, TrainingFigures)
    assert (whole.padding, whole.phases["backward"], whole.memory_free_gb, whole.device_gb) == (0.2, 0.5, 1.0, None)
    older = figures_of({"step": 3, "loss": 2.0, "clock": {"seconds": 1.0}})
    assert isinstance(older, TrainingFigures)
    assert (older.loss, older.smooth, older.grad_groups, older.seconds) == (2.0, None, {}, 1.0)
    assert figures_of({"step": 4, "eval_loss": 1.0}) == HeldFigures(4, 1.0, None, None)
    for odd in ({}, {"step": "x", "loss": 1.0}, {"step": 3}, {"step": 3, "loss": 1.0, "clock": 7, "sources": [1]}):
        figures_of(odd)


def test_a_run_that_goes_on(run: Run) -> None:
    with held_alone(run):
        state = looked(Follower(run))
    assert (state.status, state.step, state.total, state.model, state.method) == ("running", 10, 30, "smollm2", "lora")
    assert state.seconds_left == 40.0, "twenty steps at two seconds by the clock, whatever a step takes alone"
    assert state.held[-1].error == 0.1
    assert state.sources == {"a.jsonl": 2.0, "b.csv": 3.0}
    assert state.limits == (0.90, 0.95)


def test_only_what_is_new_is_read_and_a_rewound_file_is_read_again(run: Run) -> None:
    follower = Follower(run)
    measured, newest, _ = follower.look()
    assert ([one.step for one in measured], newest.step if newest else 0) == ([10], 10)
    assert follower.look() == ((), None, ())
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 11, "lo')
    assert follower.look() == ((), None, ())
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write('ss": 1.5}\n')
    assert (newest := follower.look()[1])
    assert newest.step == 11
    Journal(run.metrics).rewind(4)
    written(run.metrics, [training(step, loss=0.5) for step in range(5, 16)])
    state = looked(follower)
    assert state.losses[3:6] == ((4, 3 - 4 / 50), (5, 0.5), (6, 0.5))
    assert (state.step, state.held) == (15, ())


def test_how_it_ended(run: Run) -> None:
    def status(**options: Any) -> str:
        return str(looked(Follower(run, **options)).status)

    assert status() == "failed", "no end was written, and its lock is gone with it"
    (run.path / ".lock").touch()
    assert status() == "running", "a process that was killed may be followed by one that goes on"
    assert status(patience=-1.0) == "gone"
    (run.path / ".lock").unlink()
    written(run.events, [EXPLODING | {"rule": "disk", "level": "bad", "step": 10}])
    assert status() == "paused"
    written(run.events, [{"time": START + 30, "event": "stopped", "step": 10}])
    assert status() == "stopped"
    with held_alone(run):
        assert status() == "beginning", "taken up again"
    written(run.events, [{"time": START + 40, "event": "resumed", "step": 10}])
    with held_alone(run):
        assert status() == "running"
    written(run.events, [{"time": START + 90, "event": "finished", "step": 30}])
    state = looked(Follower(run))
    assert (state.status, state.step, state.seconds_left) == ("finished", 30, None)


def test_of_a_run_that_was_taken_up_only_new_measurements_are_told(run: Run) -> None:
    follower = Follower(run)
    follower.look()
    Journal(run.metrics).rewind(4)
    written(run.metrics, [{"step": 4, "eval_loss": 3.0, "clock": {}}, training(5)])
    written(run.metrics, [{"step": 10, "eval_loss": 2.9, "eval_error": 0.1, "eval_rows": 8, "clock": {}}])
    assert [(one.step, one.loss) for one in follower.look()[0]] == [(4, 3.0)]


def test_of_a_long_run_the_losses_are_kept_and_the_last_lines(run: Run) -> None:
    written(run.metrics, [training(step) for step in range(11, 6001)])
    assert run.metrics.stat().st_size > 2 * PIECE
    follower = Follower(run)
    state = looked(follower)
    assert [step for step, _ in state.losses] == list(range(1, 6001))
    assert len(follower.training) == 200
    assert state.latest.step == 6000


@pytest.mark.parametrize("clock", [{"time": START - 500}, {"time": math.nan, "seconds": math.nan},
                                   {"time": math.inf, "seconds": math.inf}, {"time": "x", "seconds": None}])  # fmt: skip
def test_a_clock_that_was_set_back_or_is_odd_gives_no_odd_time_left(run: Run, clock: dict[str, Any]) -> None:
    last = training(11)
    written(run.metrics, [last | {"clock": last["clock"] | clock}])
    with held_alone(run):
        left = looked(Follower(run)).seconds_left
    assert left is None or 0 <= left < math.inf


@pytest.mark.parametrize("plan", ["[]", '{"data": {"steps": Infinity}}', '{"data": [1]}', '{"data": {"st'])
def test_a_plan_that_cannot_be_read_is_no_reason_not_to_watch(run: Run, plan: str) -> None:
    (run.path / "plan.json").write_text(plan, encoding="utf-8")
    assert looked(Follower(run)).total == 30


@pytest.mark.parametrize("total", [-5, True, "x", None, 7.5])
def test_a_number_of_steps_that_is_none_is_not_taken(run: Run, total: Any) -> None:
    written(run.events, [{"time": START, "event": "resumed", "step": 0, "total": total}])
    assert looked(Follower(run)).total == 30


def test_a_recipe_of_a_newer_version_is_read_as_far_as_it_goes(run: Run) -> None:
    text = run.recipe.read_text(encoding="utf-8") + "watch: {rules: {quantum: {enabled: true}}}\n"
    run.recipe.write_text(
        text.replace("model: smollm2", "model: {name: smollm2}\ntrain: {method: new}"), encoding="utf-8"
    )
    state = looked(Follower(run))
    assert (state.model, state.method, state.step) == ("smollm2", "new", 10)


def test_where_the_rule_of_memory_is_off_no_share_of_it_is_too_much(run: Run) -> None:
    with run.recipe.open("a", encoding="utf-8") as file:
        file.write("watch: {rules: {memory: {enabled: false}}}\n")
    assert looked(Follower(run)).limits == (math.inf, math.inf)


def test_losses_that_are_no_numbers_do_not_break_the_curve(run: Run) -> None:
    written(run.metrics, [training(11, loss=math.nan), training(12, loss=None, smooth=math.inf)])
    state = looked(Follower(run))
    assert [step for step, _ in state.losses] == list(range(1, 11))
    assert (state.latest.step, state.latest.loss) == (12, None)


HOLDER = """
import sys, time
from pathlib import Path
from tuneloop.runs.run import Run, held_alone

with held_alone(Run(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_the_lock_of_a_killed_process_holds_nothing(run: Run) -> None:
    from tuneloop.runs.lock import is_held

    lock = run.path / ".lock"
    assert not is_held(lock)
    assert not lock.exists(), "asking makes no file"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert is_held(lock)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert lock.exists()
    assert not is_held(lock)
