"""Where a control group's limits stand."""

from __future__ import annotations

from pathlib import Path

from tuneloop.base.cgroups import ControlGroup, control_groups


def test_the_nearest_group_comes_first_of_either_version(tmp_path: Path) -> None:
    own, root = tmp_path / "own", tmp_path / "root"
    own.write_text("4:cpu,cpuacct:/x\n3:memory:/a/b\n1:name=systemd:/s\n0::/u\n", encoding="utf-8")
    mount = root / "memory"
    assert control_groups("memory", own, root) == [
        ControlGroup(mount / "a" / "b", 1), ControlGroup(mount / "a", 1), ControlGroup(mount, 1),
        ControlGroup(root / "u", 2), ControlGroup(root, 2),
    ]  # fmt: skip
    folders = [group.folder for group in control_groups("cpu", own, root) if group.version == 1]
    assert folders == [root / "cpu,cpuacct" / "x", root / "cpu,cpuacct", root / "cpu" / "x", root / "cpu"]


def test_a_system_without_groups_has_none(tmp_path: Path) -> None:
    assert control_groups("memory", tmp_path / "none", tmp_path) == []
