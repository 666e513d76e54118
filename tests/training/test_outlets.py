"""A run's figures in TensorBoard and Trackio, as their own readers find them; what fails, is missing or ends is told."""

from __future__ import annotations

import errno
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.robots import listening
from tuneloop.base.errors import MachineError
from tuneloop.monitor.alerts import Alert
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run, new_run
from tuneloop.training import trackers
from tuneloop.training.outlets import Outlets

LINES: list[dict[str, Any]] = [
    {"step": n, "loss": 2.0 / n, "grad_norm": 0.5, "batch": "ab", "clock": {"time": 1.0, "seconds": 0.25}}
    for n in range(1, 4)
] + [{"step": 3, "eval_loss": 1.5, "eval_rows": 4, "clock": {"seconds": 0.1}}]


def recipe(**watch: Any) -> Recipe:
    return make_recipe({"name": "r", "model": "m", "data": "d.jsonl", "watch": watch})[0]


def sent(run: Run, names: list[str], said: list[str]) -> None:
    with Outlets(run, recipe(trackers=names)) as outlets:
        outlets.begin(0, said.append)
        for line in LINES:
            outlets.line(line)
        outlets.alerted(Alert("nan", "bad", 3, 3, {}))
        outlets.ended(True, 3, 3)


def test_tensorboard_has_the_figures(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    said: list[str] = []
    run = new_run(tmp_path, "r")
    sent(run, ["tensorboard"], said)
    read = accumulator.EventAccumulator(str(run.path / "trackers" / "tensorboard" / run.path.name)).Reload()
    assert [(e.step, e.value) for e in read.Scalars("train/loss")] == [(1, 2.0), (2, 1.0), (3, pytest.approx(2 / 3))]
    assert [(e.step, e.value) for e in read.Scalars("eval/loss")] == [(3, 1.5)]
    assert [(e.step, e.value) for e in read.Scalars("alerts/nan")] == [(3, 3.0)]
    (note,) = read.Tensors("notes/nan/text_summary")
    assert note.step == 3
    assert said == []


def test_two_runs_of_one_process_have_their_own_trackio(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    said: list[str] = []
    for _ in range(2):
        run = new_run(tmp_path, "r")
        sent(run, ["trackio"], said)
        assert (run.path / "trackers" / "trackio" / "tuneloop.db").exists()
        assert [r["name"] if isinstance(r, dict) else r for r in SQLiteStorage.get_runs("tuneloop")] == [run.path.name]
        logs = SQLiteStorage.get_logs("tuneloop", run.path.name)
        assert [(row["step"], row["train/loss"]) for row in logs if "train/loss" in row] == [
            (line["step"], line["loss"]) for line in LINES[:3]
        ]
        assert [row["eval/loss"] for row in logs if "eval/loss" in row] == [1.5]
    assert said == []
    assert capfd.readouterr().out == ""


def test_a_tracker_that_fails_is_said_once_and_left_out(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = new_run(tmp_path, "r")
    (run.path / "trackers").mkdir()
    (run.path / "trackers" / "tensorboard").write_text("not a folder", encoding="utf-8")
    said: list[str] = []
    sent(run, ["tensorboard"], said)
    assert len(said) == 1
    assert "tensorboard is left out" in said[0]


def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = trackers.TRACKERS["mlflow"]
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", trackers.TrackerKind("nowhere", kind.arguments, kind.noted))
    with pytest.raises(MachineError) as caught:
        Outlets(new_run(tmp_path, "r"), recipe(trackers=["mlflow"]))
    assert caught.value.code == "TL-MACHINE-EXTRA"
    assert "[mlflow]" in str(caught.value)


def test_what_a_tracker_learns_of_the_recipe_holds_no_addresses() -> None:
    known = dict(trackers.settings(recipe(notify={"file": "secret.txt"})))
    assert known["model.name"] == "m"
    assert not [key for key in known if key.startswith(("serve", "watch.notify"))]


FULL = MachineError("TL-MACHINE-DISK", where="/runs", needed="1 GB", free="0 B", then="")


@pytest.mark.parametrize(
    ("error", "finished", "words", "tone"),
    [(None, True, "finished at step 3 of 3", "success"), (None, False, "stopped at step 3", "warning"),
     (KeyboardInterrupt(), None, "stopped at step 3", "warning"),
     (OSError(errno.ENOSPC, "No space left on device"), None, "paused at step 3: the disk is full", "warning"),
     (FULL, None, "paused at step 3: the disk is full", "warning"),
     (ValueError("no such thing"), None, "failed at step 3\nValueError: no such thing", "failure")],
)  # fmt: skip
def test_the_end_is_told(
    error: BaseException | None, finished: bool | None, words: str, tone: str, tmp_path: Path
) -> None:
    pytest.importorskip("apprise")
    run = new_run(tmp_path, "r")
    Journal(run.metrics).write_all(LINES)
    file = tmp_path / "addresses.txt"
    with listening() as robots:
        file.write_text(f"json://{robots.at[7:]}\n", encoding="utf-8")
        with (
            suppress(ValueError, OSError, MachineError, KeyboardInterrupt),
            Outlets(run, recipe(notify={"file": str(file)})) as outlets,
        ):
            if finished is not None:
                outlets.ended(finished, 3, 3)
            if error is not None:
                raise error
    ((_, body),) = robots.got
    sent_body = json.loads(body)
    message = sent_body["message"]
    assert words in message
    assert run.path.name in message
    assert sent_body["type"] == tone
    assert ("--resume" in message) == (not finished), "how to go on"


def test_figures_are_json_numbers() -> None:
    assert json.loads(json.dumps(trackers.figures({**LINES[0], "loss": float("nan"), "kept": True}))) == {
        "train/grad_norm": 0.5,
        "clock/seconds": 0.25,
    }
