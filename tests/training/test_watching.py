from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.monitor.lines import course, falling
from tests.training.test_session import Sessions
from tuneloop.base import language
from tuneloop.data.batches.loader import Step
from tuneloop.model.checkpoint import State
from tuneloop.monitor.alerts import Alert
from tuneloop.monitor.history import RunLimits
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.watch import WatchPart
from tuneloop.runs.journal import Journal, Tail
from tuneloop.training.finite import Finite
from tuneloop.training.loop import StepResult
from tuneloop.training.watching import Watcher

OUTCOME = StepResult(
    Step(number=0, batches=[], weight=1.0, label_tokens=1, tokens=1, samples=1, digest=""),
    torch.tensor(1.0), torch.tensor(1.0), 1e-4, Finite(None, torch.device("cpu")),
)  # fmt: skip


@pytest.fixture
def sessions(tiny_model: Path, tmp_path: Path) -> Sessions:
    return Sessions(tiny_model, tmp_path)


class Watched:
    """A watcher over a folder, and what came of it."""

    def __init__(self, folder: Path, **watch: Any) -> None:
        self.metrics, self.events = Journal(folder / "metrics.jsonl"), Journal(folder / "events.jsonl")
        self.held = Journal(folder / "held.jsonl")
        self.screen: list[str] = []
        self.handed: list[Alert] = []
        self.watcher = Watcher(
            WatchPart.model_validate(watch), Tail(self.metrics.path), Tail(self.held.path), self.events, self.screen.append,
            RunLimits(total=200), (self.handed.append,),
        )  # fmt: skip

    def go(self, lines: list[dict[str, Any]]) -> None:
        for one in lines:
            self.metrics.write(one)
            self.watcher.on_step(State(step=one["step"]), OUTCOME)

    def alerts(self) -> list[Alert]:
        return [Alert.of(one) for one in self.events.lines() if one["event"] == "alert"]


LINES = course(60, falling, learning_rate=lambda k: 0.0 if 20 <= k < 30 else 1e-4)


def test_an_alert_is_on_the_screen_in_the_events_and_with_who_listens(tmp_path: Path) -> None:
    one = Watched(tmp_path)
    one.go(LINES)
    given = [(a.rule, a.level, a.step, a.since) for a in one.alerts()]
    assert given == [("rate", "bad", 21, 20), ("rate", "good", 34, 20)]
    assert one.handed == one.alerts()
    head, do, over = one.screen
    assert head.startswith("✗ bad, step 21: the learning rate is zero, and steps are left: 179")
    assert do.startswith("   -> Check `train.schedule`")
    assert over.startswith("✓ good, step 34: over: ")


def test_it_speaks_chinese(tmp_path: Path) -> None:
    language.use("zh")
    one = Watched(tmp_path)
    one.go(LINES[:25])
    assert one.screen[0].startswith("✗ 严重，第 21 步：学习率为零")


@pytest.mark.parametrize("watch", [{"enabled": False}, {"rules": {"rate": {"enabled": False}}}])
def test_what_is_switched_off_stays_silent(tmp_path: Path, watch: dict[str, Any]) -> None:
    one = Watched(tmp_path, **watch)
    one.go(LINES)
    assert (one.alerts(), one.screen, one.handed) == ([], [], [])


def test_a_note_and_its_end_are_not_on_the_screen(tmp_path: Path) -> None:
    one = Watched(tmp_path)
    for level in ("note", "good", "watch", "good"):
        one.watcher.give(Alert("rebound", level, 9, 6, {"loss": 3.6, "low": 3.4, "low_step": 5, "share": 0.05}))
    assert [alert.level for alert in one.alerts()] == ["note", "good", "watch", "good"]
    assert [line.partition(" ")[0] for line in one.screen if not line.startswith("  ")] == ["!", "✓"]


@pytest.mark.parametrize("cut", [10, 20, 21, 25, 33])
def test_a_run_that_is_taken_up_tells_what_it_would_have_told(tmp_path: Path, cut: int) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, parts = Watched(tmp_path / "a"), Watched(tmp_path / "b")
    whole.go(LINES)
    parts.go(LINES[:cut])
    again = Watched(tmp_path / "b")
    assert again.screen == []
    again.go(LINES[cut:])
    assert again.alerts() == whole.alerts()


def test_rows_come_before_their_measurement_when_a_run_is_taken_up(tmp_path: Path) -> None:
    """The best measurement's rows are long gone from the last ones, and yet still paired."""

    def measured(step: int) -> float:
        return 2.0 + 0.02 * abs(step - 10)

    def go(one: Watched, steps: range) -> None:
        for step in steps:
            if step % 5 == 0:
                one.held.write({"step": step, "losses": [measured(step)] * 30, "weights": [1.0] * 30})
            one.metrics.write(LINES[step - 1] | {"learning_rate": 1e-4})
            if step % 5 == 0:
                one.metrics.write({"step": step, "eval_loss": measured(step), "eval_error": 5.0, "eval_rows": 30})
            one.watcher.on_step(State(step=step), OUTCOME)

    one = Watched(tmp_path)
    go(one, range(1, 60))
    again = Watched(tmp_path)
    assert repr(again.watcher.standings) == repr(one.watcher.standings)
    assert [(a.rule, a.level, a.step) for a in one.alerts()] == [("overfit", "watch", 20), ("overfit", "bad", 30)]


def test_a_session_that_is_well_is_left_in_peace_and_one_at_a_mad_rate_is_not(
    sessions: Sessions, capsys: pytest.CaptureFixture[str]
) -> None:
    well = sessions.run(epochs=4, eval_strategy="steps", eval_steps=5)
    assert [a for a in alerts_of(well.path) if a.level in {"watch", "bad"}] == []
    mad = sessions.run(epochs=4, learning_rate=5.0)
    (first, *_) = [a for a in alerts_of(mad.path) if a.level in {"watch", "bad"}]
    assert first.step <= 20
    assert first.code in capsys.readouterr().err


def test_a_session_may_be_unwatched(sessions: Sessions) -> None:
    run, recipe = sessions.begin(epochs=4, learning_rate=5.0)
    silent, _ = make_recipe({**recipe.model_dump(exclude_unset=True), "watch": {"enabled": False}})
    assert sessions.go(run, silent).finished
    assert alerts_of(run.path) == []


def alerts_of(folder: Path) -> list[Alert]:
    events = [json.loads(text) for text in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [Alert.of(one) for one in events if one["event"] == "alert"]
