from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tuneloop.data.batches.loader import Step
from tuneloop.model.checkpoint import State
from tuneloop.monitor.meters import Meter
from tuneloop.runs.journal import Journal
from tuneloop.training.callbacks import Due, HeldOut, Metrics, Saver, Screen
from tuneloop.training.finite import Finite
from tuneloop.training.held_rows import HeldLosses
from tuneloop.training.step_result import StepResult

EVERY = Due("steps", 1, 10, 1000)


def result(number: int, loss: float = 2.0) -> StepResult:
    step = Step(number, [], 32.0, 30, 100, 4, "abcd0123")
    finite = Finite(None, torch.device("cpu"))
    return StepResult(step, torch.tensor(32 * loss), torch.tensor(0.5), 1e-4, finite)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("due", "expected"),
    [
        (Due("steps", 3, 4, 10), [3, 6, 9, 10]),
        (Due("steps", 3, 4, 9), [3, 6, 9]),
        (Due("steps", 100, 4, 10), [10]),
        (Due("steps", 3, 4, 10, last=False), [3, 6, 9]),
        (Due("epoch", 3, 4, 10), [4, 8, 10]),
        (Due("epoch", 1, 4, 8), [4, 8]),
        (Due("epoch", 1, 40, 10), [10]),
        (Due("no", 1, 4, 10), [10]),
        (Due("no", 1, 4, 10, last=False), []),
    ],
    ids=str,
)
def test_when_something_is_due(due: Due, expected: list[int]) -> None:
    assert [k for k in range(1, due.total + 1) if due(k)] == expected


def test_a_journal_grows_by_whole_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "events.jsonl")
    journal.sync()  # nothing there yet
    journal.event("started", step=0)
    journal.write({"note": "检查点\n二"})
    journal.sync()
    first, second = lines(journal.path)
    assert first["event"] == "started"
    assert first["time"] > 1.7e9
    assert second == {"note": "检查点\n二"}
    assert "检查点" in journal.path.read_text(encoding="utf-8")


def test_a_line_that_was_cut_short_does_not_spoil_the_next(tmp_path: Path) -> None:
    """After a crash in the middle of a line, a resumed run writes its own lines whole."""
    journal = Journal(tmp_path / "events.jsonl")
    journal.event("started", step=0)
    with journal.path.open("a", encoding="utf-8") as file:
        file.write('{"time": 1.0, "event": "check')
    journal.event("resumed", step=4)
    journal.event("finished", step=9)
    good = []
    for line in journal.path.read_text(encoding="utf-8").splitlines():
        try:
            good.append(json.loads(line)["event"])
        except ValueError:
            continue
    assert good == ["started", "resumed", "finished"]


def test_rewinding_drops_what_will_come_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.rewind(3)
    assert not journal.path.exists()
    for step in range(1, 7):
        journal.write({"step": step, "loss": 1 / step})
        if step % 2 == 0:
            journal.write({"step": step, "eval_loss": 1 / step})
    kept = lines(journal.path)
    with journal.path.open("ab") as file:
        file.write(b'{"step": 7, "lo\xe6')
    journal.rewind(4)
    assert lines(journal.path) == [line for line in kept if line["step"] <= 4]
    journal.write({"step": 5})
    assert lines(journal.path)[-1] == {"step": 5}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    journal.rewind(0)
    assert lines(journal.path) == []


@pytest.mark.parametrize("half", ['{"step": 2', '{"step": 2, "loss": 0.5}', "7\n", "null\n", '{"loss": 1}\n', "\n"])
def test_a_line_that_is_none_is_dropped(tmp_path: Path, half: str) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write({"step": 1})
    with journal.path.open("a", encoding="utf-8") as file:
        file.write(half)
    journal.rewind(1)
    assert lines(journal.path) == [{"step": 1}]


def test_a_training_line_holds_what_was_promised(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    metrics = Metrics(journal, Meter(), Due("steps", 2, 4, 100), 4)
    for step in range(1, 5):
        metrics.on_step(State(step), result(step - 1, loss=2 / step))
    metrics.on_end(State(4))
    first, second = lines(journal.path)
    assert (first["step"], second["step"]) == (2, 4)
    clock = second.pop("clock")
    assert set(clock) == {"time", "seconds", "tokens_per_second", "memory_gb"}
    assert second == {
        "step": 4, "epoch": 1.0, "loss": 0.5, "smooth": pytest.approx(0.7375), "grad_norm": 0.5, "learning_rate": 1e-4, "samples": 4, "batch": "abcd0123",
        "tokens": 100, "label_tokens": 30, "padding": 0,
    }  # fmt: skip
    assert metrics.meter.total_tokens == 400, "steps without a line count as well"


def test_a_line_is_handed_on_as_it_was_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    heard: list[dict[str, Any]] = []
    listeners = (heard.append, lambda line: heard.append({"written": len(list(journal.lines()))}))
    metrics = Metrics(journal, Meter(), Due("steps", 2, 4, 100), 4, listeners=listeners)
    held = HeldOut(journal, Meter(), EVERY, 4, lambda: HeldLosses(30.0, 20), lambda text: None, listeners=listeners)
    metrics.on_step(State(1), result(0))
    metrics.on_step(State(2), result(1))
    held.on_step(State(2), result(1))
    first, second = lines(journal.path)
    assert heard == [first, {"written": 1}, second, {"written": 2}]


def test_a_run_that_goes_on_smooths_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    losses = [2.7, 1.1, 3.3, 0.123456789, 2.0, 0.7]
    whole, parts = Journal(tmp_path / "whole.jsonl"), Journal(tmp_path / "parts.jsonl")
    once = Metrics(whole, Meter(), EVERY, 4)
    for step, loss in enumerate(losses, 1):
        once.on_step(State(step), result(step - 1, loss))
        Metrics(parts, Meter(), EVERY, 4).on_step(State(step), result(step - 1, loss))
        parts.write({"step": step, "eval_loss": 9.0})
    smooth = [[line["smooth"] for line in lines(j.path) if "smooth" in line] for j in (whole, parts)]
    assert smooth[0] == smooth[1]
    assert smooth[0][0] == pytest.approx(2.7)


def test_padding_is_what_ranks_compute_for_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    seen = result(0)
    metrics = Metrics(journal, Meter(), EVERY, 4)
    metrics.on_step(State(1), seen)
    metrics.on_step(State(2), replace(seen, step=replace(seen.step, idle=25)))
    assert [line["padding"] for line in lines(journal.path)] == [0, 0.2]


def test_the_rows_of_a_measurement_are_written_beside_it(tmp_path: Path) -> None:
    journal, beside = Journal(tmp_path / "metrics.jsonl"), Journal(tmp_path / "held.jsonl")
    losses, weights = np.array([1.0, 2.0, 4.0]), np.array([2.0, 1.0, 1.0])
    held = HeldLosses(8.0, 4.0, losses, weights)
    HeldOut(journal, Meter(), EVERY, 4, lambda: held, lambda text: None, rows=beside).on_step(State(3), result(2))
    (line,) = lines(journal.path)
    assert (line["eval_loss"], line["eval_rows"]) == (2.0, 3)
    assert line["eval_error"] == pytest.approx((1.5 * (4 + 0 + 4)) ** 0.5 / 4)
    assert lines(beside.path) == [{"step": 3, "losses": [1.0, 2.0, 4.0], "weights": [2.0, 1.0, 1.0]}]


def test_the_held_out_loss_is_a_line_of_its_own(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    said: list[str] = []
    held = HeldOut(journal, Meter(), Due("steps", 2, 4, 100), 4, lambda: HeldLosses(30.0, 20), said.append)
    for step in (1, 2, 3):
        held.on_step(State(step), result(step))
    (line,) = lines(journal.path)
    assert line.pop("clock")["seconds"] >= 0
    assert line == {"step": 2, "epoch": 0.5, "eval_loss": 1.5, "eval_rows": 0}
    assert said == ["step 2: held-out loss 1.5000"]


def test_who_wants_to_know_a_held_out_loss_is_told_after_its_line_stands(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    heard: list[tuple[int, float, int]] = []

    def listen(step: int, loss: float) -> None:
        heard.append((step, loss, len(list(journal.lines()))))

    held = HeldOut(
        journal, Meter(), Due("steps", 2, 4, 100), 4, lambda: HeldLosses(30.0, 20), lambda text: None, (listen,)
    )
    for step in (1, 2, 3, 4):
        held.on_step(State(step), result(step))
    assert heard == [(2, 1.5, 1), (4, 1.5, 2)]


def test_without_held_out_rows_there_is_no_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    HeldOut(journal, Meter(), EVERY, 4, lambda: HeldLosses(0.0, 0), pytest.fail).on_step(State(1), result(0))
    assert not journal.path.exists()


def test_a_checkpoint_is_written_when_due_and_where_the_loop_ends(tmp_path: Path) -> None:
    saved: list[int] = []

    def save(state: State) -> Path:
        saved.append(state.step)
        return tmp_path / f"step-{state.step}"

    journal = Journal(tmp_path / "events.jsonl")
    saver = Saver(save, journal, Meter(), Due("steps", 3, 4, 100))
    for step in range(1, 6):
        saver.on_step(State(step), result(step))
    saver.on_end(State(5))
    assert saved == [3, 5]
    assert [(e["event"], e["step"], e["path"]) for e in lines(journal.path)] == [
        ("checkpoint", 3, "step-3"), ("checkpoint", 5, "step-5"),
    ]  # fmt: skip
    saver.on_step(State(6), result(6))
    saver.on_end(State(6))
    assert saved == [3, 5, 6], "the last step's checkpoint is not written twice"


def test_no_step_no_checkpoint(tmp_path: Path) -> None:
    Saver(lambda s: pytest.fail("saved"), Journal(tmp_path / "e"), Meter(), EVERY).on_end(State(0))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_are_plain_lines_now_and_then() -> None:
    file = io.StringIO()
    screen = Screen(50, Meter(), file, interval=3600)
    for step in range(1, 51):
        screen.on_step(State(step), result(step, loss=3.0))
    screen.say("a [bracket] and a long line " + "x" * 200)
    screen.on_end(State(50))
    text = file.getvalue()
    assert "\x1b" not in text
    first, last, said = text.splitlines()
    assert "step 1/50" in first
    assert "step 50/50" in last
    assert "loss 3.000" in last
    assert "tok/s" in last
    assert said.endswith("x" * 200)
    assert "[bracket]" in said


def test_lines_are_thinned_as_the_metrics_are() -> None:
    file = io.StringIO()
    screen = Screen(12, Meter(), file, interval=0, due=Due("steps", 5, 4, 12))
    for step in range(1, 13):
        screen.on_step(State(step), result(step))
    said = [line.split()[1] for line in file.getvalue().splitlines()]
    assert said == ["5/12", "10/12", "12/12"]
    assert file.getvalue().splitlines()[-1].endswith("0 s left")


def test_time_left_is_counted_from_where_the_run_was_taken_up() -> None:
    import time

    file = io.StringIO()
    screen = Screen(110, Meter(), file, first=100, interval=0)
    time.sleep(0.2)
    screen.on_step(State(101), result(101))
    left = float(file.getvalue().split("  ")[-1].split()[0])
    assert left == pytest.approx(9 * 0.2, abs=1)


def test_on_a_terminal_there_is_a_bar() -> None:
    file = Terminal()
    screen = Screen(4, Meter(), file)
    for step in range(1, 5):
        screen.on_step(State(step), result(step, loss=1.25))
    screen.say("step 4: held-out loss 1.2500")
    screen.close()
    screen.close()
    assert "\x1b[" in file.getvalue()
    assert "100%" in file.getvalue()
    assert "loss 1.250" in file.getvalue()
    assert "held-out" in file.getvalue()
