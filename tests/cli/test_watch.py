from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

from tests.monitor.test_live import START, training, written
from tests.monitor.test_notices import EXPLODING, MEMORY, OVER, REMEDY, WORSE
from tuneloop.base import language
from tuneloop.cli.main import app
from tuneloop.cli.watch_lines import closing
from tuneloop.cli.watch_page import WatchPage, sparkline
from tuneloop.monitor.live import Follower, LiveRun
from tuneloop.runs.run import Run, held_alone

CHINESE = re.compile(r"[\u4e00-\u9fff]")


def make_run(folder: Path, *, ended: bool = False, noticed: bool = True) -> Run:
    """A run of 40 of 60 steps, with alerts, a remedy and held-out losses."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("name: demo\nmodel: smollm2\ndata: [a.jsonl]\n", encoding="utf-8")
    lines: list[dict[str, Any]] = []
    for step in range(1, 41):
        lines.append(training(step))
        if step % 10 == 0:
            lines.append({"step": step, "eval_loss": 3.2 - step / 50, "eval_error": 0.04, "eval_rows": 64, "clock": {}})
    written(folder / "metrics.jsonl", lines)
    events = [{"time": START, "event": "started", "step": 0, "total": 60}]
    events += [EXPLODING, WORSE, OVER, REMEDY, MEMORY] if noticed else []
    events += [{"time": START + 90, "event": "finished", "step": 40}] if ended else []
    written(folder / "events.jsonl", events)
    return Run(folder)


def state(run: Run) -> LiveRun:
    follower = Follower(run)
    follower.look()
    return follower.state(time.time())


def drawn(page: WatchPage, width: int, **options: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False, **options)
    with console.capture() as captured:
        console.print(page)
    return captured.get().splitlines()


@pytest.mark.parametrize("tongue", language.LANGUAGES)
@pytest.mark.parametrize("width", [40, 80, 160])
def test_every_figure_is_there_and_no_line_is_too_wide(tmp_path: Path, tongue: str, width: int) -> None:
    run = state(make_run(tmp_path / "demo-1"))
    language.use(tongue)
    lines = drawn(WatchPage(run), width)
    assert all(Text(line).cell_len <= width for line in lines)
    text = "\n".join(lines)
    for part in ("demo-1", "2.200", "2.400", "± 0.078", "1.00e-04", "blocks 0-9 0.500", "a.jsonl 2.000", "b.csv 3.000",
                 "400", "14.6", "94 %", "90 %", "100.0", "12.3" if width > 40 else "✗", "↻", "✓"):  # fmt: skip
        assert part in text, part
    assert bool(CHINESE.search(text)) == (tongue == "zh")
    beside = next(line for line in lines if "Alerts and remedies" in line or "警报与补救" in line)
    assert beside.startswith(("Alerts", "警报")) == (width < 120), "at 160 columns they stand beside the figures"


def test_a_page_keeps_to_its_height_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    run = state(make_run(tmp_path / "demo-1"))
    whole = drawn(WatchPage(run), 80)
    for height in (24, 30, 40):
        lines = drawn(WatchPage(run, height, "Ctrl-C"), 80)
        assert len(lines) <= height
        assert lines[-1].strip() == "Ctrl-C"
        assert height >= len(whole) + 2 or any(line.startswith("… and ") for line in lines)
        assert any("main memory" in line for line in lines), "what is still on comes first"


@pytest.mark.parametrize("tongue", language.LANGUAGES)
@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 16), (40, 20), (100, 24)])
def test_the_worst_alert_is_seen_however_small_the_terminal_is(
    tmp_path: Path, tongue: str, width: int, height: int
) -> None:
    run = make_run(tmp_path / "demo-1")
    groups = {f"layers {10 * k}-{10 * k + 9}": 0.5 for k in range(7)}
    files = {f"a_rather_long_name_of_a_file_{k}.jsonl": 2.0 for k in range(8)}
    card = training(41)["clock"] | {"device_gb": 20.0, "device_total_gb": 24.0, "gpu": 0.9, "temperature": 70.0}
    written(run.metrics, [training(41, grad_groups=groups, sources=files, clock=card)])
    written(run.events, [EXPLODING | {"rule": "disk", "level": "bad", "step": 41, "since": 41}])
    with language.speaking(tongue):
        lines = drawn(WatchPage(state(run), height, "Ctrl-C"), width)
        bad = {"en": "✗ bad", "zh": "✗ 严重"}[tongue]
    assert len(lines) <= height
    assert lines[0].startswith("demo-1")
    assert lines[-1].strip() == "Ctrl-C"
    assert any(line.startswith(f" {bad}") for line in lines)


def test_what_is_drawn_once_has_an_end(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo-1")
    alert = EXPLODING | {"rule": "exploding", "level": "watch"}
    events = [alert | {"step": k, "since": k, "level": "good" if k % 2 else "watch"} for k in range(41, 2041)]
    written(run.events, events)
    lines = drawn(WatchPage(state(run)), 80)
    assert len(lines) < 150
    assert re.fullmatch(r"… and \d,?\d+ more", lines[-1].strip())


def test_without_colours_a_level_is_still_a_sign_and_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = state(make_run(tmp_path / "demo-1"))
    colours = "\n".join(drawn(WatchPage(run), 80, force_terminal=True, color_system="standard"))
    assert "\x1b[30;43m ! watch " in colours
    monkeypatch.setenv("NO_COLOR", "1")
    plain = "\n".join(drawn(WatchPage(run), 80, force_terminal=True, color_system="standard"))
    assert not re.search(r"\x1b\[[\d;]*[34]\dm", plain)
    assert " ! watch " in plain
    assert " ↻ remedied " in plain


def test_a_run_that_wrote_nothing_yet_and_one_of_an_older_version(tmp_path: Path) -> None:
    young = tmp_path / "young-1"
    young.mkdir()
    (young / "recipe.yaml").write_text("name: young\nmodel: smollm2\ndata: [a.jsonl]\n", encoding="utf-8")
    text = "\n".join(drawn(WatchPage(state(Run(young))), 80))
    assert "beginning" in text
    assert "None so far." in text
    written(young / "metrics.jsonl", [{"step": 1, "loss": 2.5, "grad_norm": 1.0, "clock": {"seconds": 2.0}}])
    text = "\n".join(drawn(WatchPage(state(Run(young))), 80))
    assert "2.500" in text
    assert "Held-out" not in text


def test_a_curve_of_signs_goes_where_the_numbers_go() -> None:
    assert sparkline([float(k) for k in range(80)], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, 1.0], 9) == "▁▁"


def test_once_draws_and_says_what_next(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "demo-1", ended=True)
    done = CliRunner().invoke(app, ["watch", "latest", "-w", str(tmp_path), "--once"])
    assert done.exit_code == 0
    assert "\x1b" not in done.stdout
    assert not [line for line in done.stdout.splitlines() if line != line.rstrip()]
    assert done.stdout.splitlines()[-1] == f"Training ended at step 40 of 60. Next: tuneloop evaluate {run.path}"
    assert closing(state(run), "x", evaluated=True).endswith("tuneloop chat x")


def test_off_a_terminal_a_line_for_each_notice_and_the_newest_step(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "demo-1", ended=True)
    done = CliRunner().invoke(app, ["watch", "demo-1", "-w", str(tmp_path)])
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    assert [x.partition("]")[0] + "]" for x in lines[:5]] == [
        "[! watch]",
        "[✗ bad]",
        "[✓ good]",
        "[↻ remedied]",
        "[! watch]",
    ]
    assert "4.2 is much for this run. Gradients" in lines[0]
    assert lines[2].endswith("4.2 is much for this run."), "what is over needs no advice"
    assert lines[5].startswith("step 40/60  loss 2.200  smoothed 2.300  grad 1.000")


def watching(run: Run, *options: str, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tuneloop", "watch", str(run.path), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", **more)


def test_it_follows_a_run_in_another_process_until_that_ends(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "demo-1", noticed=False)
    with held_alone(run):
        follower = watching(run, "--interval", "0.05")
        assert follower.stdout is not None
        assert follower.stdout.readline().startswith("step 40/60")
        written(run.metrics, [training(41)])
        assert follower.stdout.readline().startswith("step 41/60")
        written(run.metrics, [{"step": 41, "eval_loss": 2.5, "eval_error": 0.1, "clock": {}}])
        assert follower.stdout.readline() == "step 41: held-out loss 2.5000 ± 0.1960\n"
        written(run.events, [EXPLODING])
        assert follower.stdout.readline().startswith("[! watch]")
        written(run.events, [{"time": START, "event": "stopped", "step": 41}])
    rest, _ = follower.communicate(timeout=20)
    assert rest == f"Stopped at step 41 of 60. Go on with: tuneloop train --resume {run.path}\n"
    assert follower.returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo terminals")
def test_on_a_terminal_the_page_is_live_and_ctrl_c_leaves_quietly(tmp_path: Path) -> None:
    import pty

    run = make_run(tmp_path / "runs" / "demo-1")
    ours, theirs = pty.openpty()
    with held_alone(run):
        more = {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}
        command = [sys.executable, "-m", "tuneloop", "watch", str(run.path), "--interval", "0.05"]
        follower = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | more,
                                    start_new_session=True, preexec_fn=_controlled)  # fmt: skip
        os.close(theirs)
        seen = _until(ours, "", "step 40 of 60")
        assert "\x1b[?1049h" in seen, "a screen of its own"
        written(run.metrics, [training(41)])
        _until(ours, "", "step 41 of 60")
        os.write(ours, b"\x03")
        rest = _until(ours, "", "\x1b[?1049l")  # before it can end somebody must read what it still draws
        assert follower.wait(timeout=20) == 130
    assert "Stopped" not in rest, "the run has not"
    os.close(ours)


def _controlled() -> None:
    """Make the standard input the terminal that sends Ctrl-C."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _until(terminal: int, seen: str, wanted: str) -> str:
    """What the terminal shows up to the words that are waited for."""
    end = time.monotonic() + 60
    while wanted not in seen:
        assert time.monotonic() < end, seen[-3000:]
        seen += os.read(terminal, 1 << 16).decode("utf-8", "replace")
    return seen


def test_json_lines_of_the_folder_stay_as_they_were(tmp_path: Path) -> None:
    """It only reads."""
    run = make_run(tmp_path / "runs" / "demo-1", ended=True)
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    assert CliRunner().invoke(app, ["watch", str(run.path)]).exit_code == 0
    assert {p.name: p.read_bytes() for p in run.path.iterdir()} == before
    assert json.loads(before["metrics.jsonl"].splitlines()[0])["step"] == 1
