"""The parent of a training process, with real processes: what ends the child, and what ends with the parent."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tuneloop.cli import parent
from tuneloop.recipe.recipe import dump, make_recipe
from tuneloop.runs.run import Run

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux ends processes for memory")

PLANTED = """
import os, signal, sys
from tuneloop.cli import parent

real, counted = parent.kills, [0]

def kills():
    counted[0] += {by_memory}
    return counted[0]

parent.kills = kills
from tuneloop.runs.journal import Journal
write = Journal.write

def dies(self, fields):
    write(self, fields)
    if fields.get("step") == 6 and "loss" in fields and parent.taken_up() is None:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.write = dies
from tuneloop.cli.main import main
main()
"""
"""A training process that the system ends in step 6; `kills` counts as the system would have."""


def started(tmp_path: Path, model: Path, rows: Path, *, by_memory: bool = True, **watch: Any) -> subprocess.Popen[str]:
    recipe, _ = make_recipe(
        {
            "name": "p", "model": str(model), "data": str(rows), "watch": watch,
            "train": {"max_steps": 9, "batch_size": 4, "learning_rate": 5e-3, "lora": {"rank": 2}, "save_strategy": "steps",
                      "save_steps": 4},
        }
    )  # fmt: skip
    file, program = tmp_path / "p.yaml", tmp_path / "planted.py"
    file.write_text(dump(recipe), encoding="utf-8")
    program.write_text(PLANTED.format(by_memory=int(by_memory)), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, str(program), "train", str(file), "--workspace", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def events(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.events.read_text(encoding="utf-8").splitlines()]


def test_a_run_that_the_system_ends_for_memory_is_taken_up_with_smaller_passes(
    tiny_model: Path, talk_file: Path, tmp_path: Path
) -> None:
    process = started(tmp_path, tiny_model, talk_file)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "Trained: " in out
    run = Run(tmp_path / "runs" / "p-1")
    names = [e["event"] for e in events(run) if e["event"] in ("started", "killed", "remedy", "resumed", "finished")]
    assert names == ["started", "killed", "remedy", "resumed", "finished"]
    remedy = next(e for e in events(run) if e["event"] == "remedy")
    assert (remedy["remedy"], remedy["resume_at"], remedy["amendment"]) == ("memory", 4, {"micro_batch_size": 2})
    steps = [json.loads(line).get("step") for line in run.metrics.read_text().splitlines() if '"loss"' in line]
    assert steps == list(range(1, 10))


def test_who_kills_the_process_by_hand_meant_it(tiny_model: Path, talk_file: Path, tmp_path: Path) -> None:
    process = started(tmp_path, tiny_model, talk_file, by_memory=False)
    process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL
    assert "killed" not in [e["event"] for e in events(Run(tmp_path / "runs" / "p-1"))]


def test_the_child_ends_with_its_parent(tiny_model: Path, talk_file: Path, tmp_path: Path) -> None:
    process = started(tmp_path, tiny_model, talk_file)
    try:
        until = time.monotonic() + 60
        while not (children := psutil.Process(process.pid).children()):
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    psutil.wait_procs(children, timeout=20)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["train", "my.yaml"], True),
        (["run", "demo", "--lang", "zh"], True),
        (["--lang=zh", "run", "demo"], True),
        (["train", "--help"], False),
        (["serve", "run"], False),
        ([], False),
    ],
    ids=str,
)
def test_who_has_a_parent(words: list[str], needed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert parent.is_needed(words) is needed
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not parent.is_needed(words)


def test_ends_for_memory_are_counted_in_the_own_group(tmp_path: Path) -> None:
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    (root / "mine").mkdir(parents=True)
    own.write_text("0::/mine\n")
    (root / "mine" / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert parent.kills(own, root) == 2
    own.write_text("5:memory:/old\n")
    (root / "memory" / "old").mkdir(parents=True)
    (root / "memory" / "old" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    assert parent.kills(own, root) == 4
    own.write_text("0::/gone\n")
    assert parent.kills(own, root) >= 0, "the machine's"
    (root / "memory.events").write_text("oom_kill 6\n")
    assert parent.kills(own, root) == 6, "in a container the mount is the group"


def test_a_process_with_torch_in_it_is_not_forked() -> None:
    """A program that calls `main` goes on in its own process."""
    program = "import sys, types; from tuneloop.cli import parent; light = parent.is_light(); sys.modules['torch'] = types; print(light, parent.is_light())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["True", "False"]
