"""A memory cgroup of a test's own, below the one that it runs in: the kernel's own limit, and its own kills."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")


class MemoryGroup:
    """A cgroup, version 1 or 2, in which the memory of processes together is counted and can be limited."""

    def __init__(self, folder: Path, *, second: bool) -> None:
        self.folder, self.second = folder, second

    def enter(self) -> None:
        """This process, and its children from now on, belong to the group."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")

    def limit(self, size: int) -> None:
        """From now on the group has at most so many bytes; who asks for more is killed."""
        names = ["memory.max"] if self.second else ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        for name in names:
            if (self.folder / name).exists():
                (self.folder / name).write_text(str(size), encoding="ascii")
        if self.second:
            with contextlib.suppress(OSError):
                (self.folder / "memory.swap.max").write_text("0", encoding="ascii")

    def own(self) -> int:
        """Bytes of the group's processes alone, without what the system keeps of files."""
        return self._stat("memory.stat", "anon" if self.second else "total_rss")

    def used(self) -> int:
        """Bytes that count against the limit and that the system cannot simply take back."""
        name = "memory.current" if self.second else "memory.usage_in_bytes"
        kept = self._stat("memory.stat", "inactive_file" if self.second else "total_inactive_file")
        return int((self.folder / name).read_text(encoding="ascii")) - kept

    def kills(self) -> int:
        """Processes that the kernel has killed here for memory."""
        return self._stat("memory.events" if self.second else "memory.oom_control", "oom_kill")

    def _stat(self, file: str, name: str) -> int:
        found = dict(line.split()[:2] for line in (self.folder / file).read_text(encoding="ascii").splitlines())
        return int(found[name])


def _parent() -> tuple[Path, bool] | None:
    """The memory cgroup of this process, and whether it is one of version 2."""
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    for _, kinds, path in groups:
        if "memory" in kinds.split(","):
            return ROOT / "memory" / path.lstrip("/"), False
    for _, kinds, path in groups:
        if not kinds:
            return ROOT / path.lstrip("/"), True
    return None


@contextlib.contextmanager
def memory_group(name: str) -> Iterator[MemoryGroup]:
    """A group without a limit, removed at the end; a test is skipped where none can be made, but fails in CI."""
    parent, problem = _parent(), "this system has no memory cgroups"
    group = None
    if parent is not None:
        folder, second = parent
        try:
            group = MemoryGroup(folder / f"tuneloop-{name}-{os.getpid()}", second=second)
            group.folder.mkdir()
            group.kills()
        except OSError as error:
            problem = f"no memory cgroup can be made below {folder}: {error}"
            with contextlib.suppress(OSError, AttributeError):
                group.folder.rmdir()  # type: ignore[union-attr]
            group = None
        except KeyError:
            problem, group = f"{folder} does not count kills", None
    if group is None:
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    try:
        yield group
    finally:
        for _ in range(50):  # a killed process takes a moment to leave
            with contextlib.suppress(OSError):
                group.folder.rmdir()
                break
            time.sleep(0.1)
