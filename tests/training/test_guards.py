from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tuneloop.base.errors import RunError
from tuneloop.data.batches.loader import Step
from tuneloop.model.checkpoint import State
from tuneloop.monitor.meters import Meter
from tuneloop.recipe.schema import TrainPart
from tuneloop.runs.journal import Journal
from tuneloop.training.callbacks import Due, HeldOut, Saver
from tuneloop.training.finite import Finite
from tuneloop.training.guards import Guard, require_held_out
from tuneloop.training.held_rows import HeldLosses
from tuneloop.training.step_result import StepResult

FINITE = Finite(None, torch.device("cpu"))
STEP = Step(number=0, batches=[], weight=1.0, label_tokens=1, tokens=1, samples=1, digest="")


def guard(folder: Path, patience: int | None = 2, *, keeps_best: bool = True) -> Guard:
    return Guard(patience, keeps_best, Journal(folder / "metrics.jsonl"), Journal(folder / "events.jsonl"), print)


def events(folder: Path) -> list[dict[str, object]]:
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    ("losses", "patience", "stops", "best"),
    [
        ([3, 2, 1], 1, 0, 3),
        ([3, 2, 2.5, 1], 1, 3, 2),
        ([3, 2, 2.5, 1, 1.5, 1.4], 2, 6, 4),
        ([3, 3], 1, 2, 1),
        ([3, 2, math.nan, math.inf], 2, 4, 2),
        ([math.nan, 2], 2, 0, 2),
        ([3, 4, 5, 6], None, 0, 1),
    ],
)
def test_when_a_run_stops_early(
    tmp_path: Path, losses: list[float], patience: int | None, stops: int, best: int
) -> None:
    one = guard(tmp_path, patience)
    asked = 0
    for step, loss in enumerate(losses, 1):
        one.measured(step, loss)
        if one.stops:
            asked = step
            break
    assert (asked, one.best_step) == (stops, best)
    assert [e["step"] for e in events(tmp_path) if e["event"] == "early_stop"] == ([stops] if stops else [])


class Course:
    """The callbacks of a run whose held-out losses are known, with checkpoints as plain names."""

    def __init__(self, folder: Path, losses: list[float], *, patience: int | None, save_every: int = 100) -> None:
        self.journal = Journal(folder / "metrics.jsonl")
        self.guard = guard(folder, patience)
        self.saved: list[tuple[int, int | None]] = []
        every = Due("steps", save_every, 4, len(losses))
        self.at = 0

        def save(state: State) -> Path:
            self.saved.append((state.step, self.guard.spare))
            return folder / f"step-{state.step}"

        def measure() -> HeldLosses:
            return HeldLosses(losses[self.at - 1] * 7, 7)

        meter = Meter()
        self.callbacks = [
            HeldOut(self.journal, meter, Due("steps", 1, 4, len(losses)), 4, measure, print, (self.guard.measured,)),
            Saver(save, Journal(folder / "events.jsonl"), meter, lambda k: every(k) or self.guard.saves(k)),
        ]

    def run(self, first: int, last: int) -> int:
        """Steps first..last, ending early where the guard asks; returns the last one made."""
        if self.guard.stops:
            return first - 1
        for self.at in range(first, last + 1):
            for callback in self.callbacks:
                callback.on_step(State(self.at), StepResult(STEP, torch.ones(()), torch.ones(()), 1.0, FINITE))
            if self.guard.stops:
                break
        for callback in self.callbacks:
            callback.on_end(State(self.at))
        return self.at


LOSSES = [5.0, 4.0, 4.5, 3.0, 3.5, 3.6, 3.7, 1.0, 0.5]


def test_the_best_state_is_saved_when_it_is_measured(tmp_path: Path) -> None:
    course = Course(tmp_path, LOSSES, patience=None)
    assert course.run(1, 9) == 9
    assert course.saved == [(1, 1), (2, 2), (4, 4), (8, 8), (9, 9)]


def test_a_run_that_stops_early_saves_where_it_ends(tmp_path: Path) -> None:
    course = Course(tmp_path, LOSSES, patience=3)
    assert course.run(1, 9) == 7
    assert course.saved[-1] == (7, 4)


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_run_that_is_taken_up_decides_what_it_would_have_decided(tmp_path: Path, cut: int) -> None:
    """Killed after step `cut` and taken up from every checkpoint that could be the newest."""
    for taken in range(1, cut + 1):
        folder = tmp_path / f"again-{taken}"
        folder.mkdir()
        Course(folder, LOSSES, patience=3).run(1, cut)
        Journal(folder / "metrics.jsonl").rewind(taken)
        again = Course(folder, LOSSES, patience=3)
        assert again.run(taken + 1, 9) == 7
        assert (again.guard.best_step, again.guard.best_loss) == (4, 3.0)
        seen = [line["eval_loss"] for line in again.journal.lines()]
        assert seen == LOSSES[:7]


def test_other_lines_and_broken_ones_are_no_measurements(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 0.1}\n{"step": 2, "eval_loss": 3}\n\n7\n{"step": 3, "eval_lo', encoding="utf-8"
    )
    one = guard(tmp_path)
    assert (one.best_step, one.best_loss, one.waited) == (2, 3, 0)


def test_the_result_is_the_last_state_where_that_is_the_best(tmp_path: Path) -> None:
    one = guard(tmp_path)
    assert one.best(tmp_path, 3) is None, "nothing was measured"
    one.measured(3, 1.0)
    assert one.best(tmp_path, 3) is None
    assert guard(tmp_path, keeps_best=False).best(tmp_path, 9) is None


def test_a_best_state_that_is_gone_is_no_result(tmp_path: Path) -> None:
    one = guard(tmp_path)
    one.measured(3, 1.0)
    one.measured(4, 2.0)
    with pytest.raises(RunError) as caught:
        one.best(tmp_path / "checkpoints", 4)
    assert (caught.value.code, caught.value.facts["step"]) == ("TL-RUN-BEST", 3)


def test_a_guard_without_held_out_rows_is_refused() -> None:
    require_held_out(TrainPart(early_stopping=2), 5)
    require_held_out(TrainPart(), 0)
    for key in ("early_stopping", "keep_best"):
        with pytest.raises(RunError) as caught:
            require_held_out(TrainPart.model_validate({key: True}), 0)
        assert (caught.value.code, caught.value.facts["key"]) == ("TL-RUN-NO-HELD-OUT", f"train.{key}")
