"""The control groups that this process is in. Linux alone has them (man 7 cgroups)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class ControlGroup(NamedTuple):
    """A folder of one control group's files. Version 1 and 2 name the files differently."""

    folder: Path
    version: int


def control_groups(
    controller: str, own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[ControlGroup]:
    """Where a controller ("cpu", "memory") may limit this process: each of its groups with those around it, nearest
    first. Some folders may not exist: in a container the names may be the host's, and the mount itself is the group.

    `own` names the process's groups, `root` is where they are mounted. Version 2 has one tree, version 1 one for each
    set of controllers.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    groups = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounts = dict.fromkeys((root / controllers, root / controller)) if controllers else [root]
        below, version = Path(path.lstrip("/")), 1 if controllers else 2
        groups += [ControlGroup(mount / group, version) for mount in mounts for group in (below, *below.parents)]
    return groups
