"""What the machine has left while a run trains: memory, the device, the processors, the disk."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch

from tuneloop.base.cgroups import control_groups

GB = 1e9
INTERVAL = 1.0
"""Seconds between two looks at the machine; in between what was seen last is told again."""


class ContainerMemory:
    """The memory limits of the process's control groups, found once; `own` and `root` are those of `control_groups`."""

    def __init__(self, own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> None:
        self.groups = list(_limits(own, root))

    def read(self) -> tuple[int, int] | None:
        """(limit, free) in bytes of the group that has least left; None without a limit.

        What the system keeps of files it gives up when memory is wanted, so it counts as free.
        """
        memory = []
        for limit, usage, stat, key in self.groups:
            with contextlib.suppress(OSError, ValueError):
                used = int(usage.read_text(encoding="ascii")) - _files_kept(stat, key)
                memory.append((limit, max(0, limit - max(0, used))))
        return min(memory, key=lambda pair: pair[1], default=None)


def _limits(own: Path, root: Path) -> Iterator[tuple[int, Path, Path, str]]:
    """(bytes, file of the bytes in use, file that tells of kept files, its key) of each group that has a limit."""
    for folder, version in control_groups("memory", own, root):
        first = version == 1
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if first else ("memory.max", "memory.current")
        key = "total_inactive_file" if first else "inactive_file"
        with contextlib.suppress(OSError, ValueError):  # no such file, or no limit ("max")
            limit = int((folder / names[0]).read_text(encoding="ascii"))
            if limit < 1 << 60:  # version 1 writes "no limit" as a huge number
                yield limit, folder / names[1], folder / "memory.stat", key


def _files_kept(stat: Path, key: str) -> int:
    for line in stat.read_text(encoding="ascii").splitlines():
        name, _, number = line.partition(" ")
        if name == key:
            return int(number)
    return 0


def _busy() -> tuple[float, float]:
    """(seconds in which cores worked, all their seconds) since the machine started."""
    times = psutil.cpu_times()._asdict()
    every = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)  # they are in user and nice
    return every - times["idle"] - times.get("iowait", 0.0), every


class Machine:
    """Looks at the machine for a metrics line's clock, once a second at most.

    `folder` is the run's, whose disk counts; `device` what is trained on.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.process, self.container = psutil.Process(), ContainerMemory()
        self.busy, self.last, self.seen = _busy(), 0.0, dict[str, float]()

    def read(self) -> dict[str, float]:
        """Memory and disk in GB (1e9 bytes), shares of 0 to 1, degrees Celsius. What cannot be known is left out."""
        now = time.monotonic()
        if not self.seen or now - self.last >= INTERVAL:
            self.seen, self.last = self._look(), now
        return self.seen

    def _look(self) -> dict[str, float]:
        memory, limited = psutil.virtual_memory(), self.container.read()
        total, free = memory.total, memory.available
        if limited is not None:
            total, free = min(total, limited[0]), min(free, limited[1])
        seen = {
            "process_gb": round(self.process.memory_info().rss / GB, 3),
            "memory_total_gb": round(total / GB, 3),
            "memory_free_gb": round(free / GB, 3),
            "cpu": self._cpu(),
        }
        if self.device.type == "cuda":
            seen |= _card(self.device)
        with contextlib.suppress(OSError):
            seen["disk_free_gb"] = round(shutil.disk_usage(self.folder).free / GB, 3)
        return seen

    def _cpu(self) -> float:
        """The share of all cores that was busy since the last look."""
        (busy, every), before = _busy(), self.busy
        self.busy = busy, every
        return round(min(1.0, max(0.0, (busy - before[0]) / max(every - before[1], 1e-9))), 3)


def _card(device: torch.device) -> dict[str, float]:
    """Of a card: what this run has held of it at most and other programs hold now; its use and temperature by NVML."""
    free, total = torch.cuda.mem_get_info(device)
    spare = torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)  # torch uses it again
    held = min(total, total - free - spare)
    seen = {"device_gb": round(held / GB, 3), "device_total_gb": round(total / GB, 3)}
    readings: dict[str, Callable[[], float]] = {
        "gpu": lambda: torch.cuda.utilization(device) / 100,
        "temperature": lambda: float(torch.cuda.temperature(device)),
    }
    for name, reading in readings.items():
        # torch asks the package of the extra `nvml`; NVML has errors of its own for what a card or driver cannot tell.
        with contextlib.suppress(Exception):
            seen[name] = reading()
    return seen
