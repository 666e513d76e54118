"""What trackers are given; tests/training/test_outlets.py has them receive it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.test_outlets import LINES, recipe
from tuneloop.base import language
from tuneloop.monitor.alerts import Alert
from tuneloop.recipe.watch import WatchPart
from tuneloop.training.trackers import TRACKERS, Tracker, figures, settings, title_and_text

RATE = Alert("rate", "bad", 21, 20, {"left": 179})


def test_every_tracker_of_the_recipe_is_there() -> None:
    for name in TRACKERS:
        assert WatchPart.model_validate({"trackers": [name]}).trackers == [name]
    with pytest.raises(ValueError, match="comet"):
        WatchPart.model_validate({"trackers": ["comet"]})


def test_names_of_files_are_keys_that_every_tracker_takes() -> None:
    line = {"step": 2, "loss": 1.0, "sources": {"闲聊 (1).jsonl": 0.5, "a/b.csv": 2.0}}
    assert figures(line) == {"train/loss": 1.0, "sources/闲聊 _1_.jsonl": 0.5, "sources/a_b.csv": 2.0}


def test_settings_are_plain_and_name_what_was_set() -> None:
    given = dict(settings(recipe(trackers=["tensorboard"])))
    assert given["watch.trackers"] == '["tensorboard"]'
    assert given["watch.rules.rebound.above"] == 0.05
    assert {type(one) for one in given.values()} <= {str, int, float, bool}


def test_an_alert_is_a_title_and_a_text_in_the_language_of_now() -> None:
    title, text = title_and_text(RATE)
    assert title == "the learning rate is zero, and steps are left: 179"
    assert "train.schedule" in text
    language.use("zh")
    assert title_and_text(RATE)[0].startswith("学习率为零")


def test_before_it_begins_and_after_its_end_a_tracker_takes_nothing(tmp_path: Path) -> None:
    tracker = Tracker("tensorboard", tmp_path / "tensorboard", "r")
    tracker.send(LINES[0])
    tracker.note(RATE, *title_and_text(RATE))
    tracker.finish()
    assert not (tmp_path / "tensorboard").exists()
