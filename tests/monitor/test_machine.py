from __future__ import annotations

import shutil
import time
from pathlib import Path

import psutil
import pytest
import torch

from tuneloop.monitor import machine
from tuneloop.monitor.machine import ContainerMemory, Machine

CPU = torch.device("cpu")
MB = 10**6


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n", encoding="ascii")


def test_what_the_machine_has_is_told(tmp_path: Path) -> None:
    seen = Machine(tmp_path, CPU).read()
    assert list(seen) == ["process_gb", "memory_total_gb", "memory_free_gb", "cpu", "disk_free_gb"], (
        "no card, nothing of one"
    )
    assert seen["process_gb"] == pytest.approx(psutil.Process().memory_info().rss / 1e9, abs=0.05)
    assert 0 < seen["memory_free_gb"] <= seen["memory_total_gb"] <= psutil.virtual_memory().total / 1e9 + 1e-3
    assert seen["disk_free_gb"] == pytest.approx(shutil.disk_usage(tmp_path).free / 1e9, abs=1)
    assert 0 <= seen["cpu"] <= 1


def test_it_looks_once_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Machine(tmp_path, CPU)
    first = one.read()
    assert one.read() is first
    monkeypatch.setattr(machine, "INTERVAL", 0.0)
    assert one.read() is not first


def test_work_shows_as_use_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "INTERVAL", 0.0)
    one = Machine(tmp_path, CPU)
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        pass
    assert one.read()["cpu"] >= 0.5 / (psutil.cpu_count() or 1)


def test_a_run_whose_folder_is_gone_has_no_disk(tmp_path: Path) -> None:
    assert "disk_free_gb" not in Machine(tmp_path / "gone", CPU).read()


def test_a_group_of_version_2_limits_memory(tmp_path: Path) -> None:
    own, root = tmp_path / "own", tmp_path / "cgroup"
    own.write_text("0::/a/b\n", encoding="utf-8")
    group(
        root / "a",
        memory__max=str(900 * MB),
        memory__current=str(300 * MB),
        memory__stat=f"anon 5\ninactive_file {100 * MB}",
    )
    group(root / "a" / "b", memory__max="max", memory__current="7", memory__stat="inactive_file 0")
    assert ContainerMemory(own, root).read() == (900 * MB, 700 * MB), "kept files are given up when memory is wanted"
    group(root / "a" / "b", memory__max=str(400 * MB), memory__current=str(290 * MB))
    assert ContainerMemory(own, root).read() == (400 * MB, 110 * MB), "the group with least left"


def test_a_group_of_version_1_limits_memory(tmp_path: Path) -> None:
    """Inside a container the path is the host's: the mount is the group."""
    own, root = tmp_path / "own", tmp_path / "cgroup"
    own.write_text("9:cpu,cpuacct:/x\n4:memory:/docker/1f\n0::/\n", encoding="utf-8")
    files = {"memory__usage_in_bytes": str(150 * MB), "memory__stat": f"inactive_file 1\ntotal_inactive_file {50 * MB}"}
    group(root / "memory", memory__limit_in_bytes=str(500 * MB), **files)
    assert ContainerMemory(own, root).read() == (500 * MB, 400 * MB)
    group(root / "memory", memory__limit_in_bytes="9223372036854771712")
    assert ContainerMemory(own, root).read() is None, "version 1 writes no limit so"


def test_without_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert ContainerMemory(tmp_path / "none", tmp_path).read() is None


def test_a_limit_counts_for_the_machine(tmp_path: Path) -> None:
    own, root = tmp_path / "own", tmp_path / "cgroup"
    own.write_text("0::/\n", encoding="utf-8")
    group(root, memory__max=str(64 * MB), memory__current=str(60 * MB), memory__stat="inactive_file 0")
    one = Machine(tmp_path, CPU)
    one.container = ContainerMemory(own, root)
    seen = one.read()
    assert (seen["memory_total_gb"], seen["memory_free_gb"]) == (0.064, 0.004)
