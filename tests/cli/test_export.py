"""tuneloop export as a process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tuneloop.cli.export import _list
from tuneloop.exports.targets import TARGETS


def export(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tuneloop", "export", *arguments], capture_output=True, text=True,
        encoding="utf-8", timeout=300, env={**os.environ, "TUNELOOP_LANG": "en"},
    )  # fmt: skip


def test_a_run_by_its_name_and_once_only(tiny_run: Path, tmp_path: Path) -> None:
    workspace = tiny_run.parents[1]
    target = tmp_path / "plain"
    done = export(tiny_run.name, "--to", str(target), "-w", str(workspace))
    assert done.returncode == 0, done.stderr
    told = re.search(r"the same most likely token at (\d+) of (\d+) ", done.stdout)
    assert told
    assert told[1] == told[2]
    assert int(told[1]) > 20
    assert (target / "model.safetensors").is_file()
    again = export(tiny_run.name, "--to", str(target), "-w", str(workspace))
    assert again.returncode == 2
    assert "TL-RUN-EXISTS" in again.stderr


def test_an_unknown_run(tmp_path: Path) -> None:
    done = export("nothing-1", "-w", str(tmp_path))
    assert done.returncode == 2
    assert "TL-RUN-MISSING" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_several_targets_as_json(tiny_run: Path, tmp_path: Path) -> None:
    workspace, to = tiny_run.parents[1], tmp_path / "both"
    done = export(tiny_run.name, "--as", "merged", "--as", "adapter", "--json", "--to", str(to), "-w", str(workspace))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["path"] == str(to)
    assert report["passed"] is True
    assert list(report["targets"]) == ["merged", "adapter"]
    for name, one in report["targets"].items():
        assert one["path"] == str(to / name)
        assert one["passed"] is True
        assert one["command"]


def test_the_targets_are_listed() -> None:
    listed = export("--targets", "--json")
    assert listed.returncode == 0
    targets = json.loads(listed.stdout)
    assert {"merged", "adapter", "gguf-q4_k_m", "gguf-lora", "nf4", "int8"} <= targets.keys()
    assert all(one["purpose"] and one["read_by"] for one in targets.values())


def test_the_list_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    _list(json=False)
    shown = capsys.readouterr().out
    assert all(name in shown for name in TARGETS)
