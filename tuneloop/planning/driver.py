"""NVIDIA's driver on this machine, and which build of torch it takes. torch itself need not be there to find out."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tuneloop.base.optional import quoted

SINCE = (
    (595, (13, 2)), (590, (13, 1)), (580, (13, 0)), (575, (12, 9)), (570, (12, 8)), (565, (12, 7)), (560, (12, 6)),
    (555, (12, 5)), (550, (12, 4)), (545, (12, 3)), (535, (12, 2)), (530, (12, 1)), (525, (12, 0)), (520, (11, 8)),
    (515, (11, 7)), (510, (11, 6)), (495, (11, 5)), (470, (11, 4)), (465, (11, 3)), (460, (11, 2)), (455, (11, 1)),
    (450, (11, 0)),
)  # fmt: skip
"""First driver branch of each CUDA version (NVIDIA, CUDA Toolkit Release Notes, table of toolkit driver versions)."""
BUILDS = {
    "2.8": (126, 128, 129), "2.9": (126, 128, 130), "2.10": (126, 128, 130), "2.11": (126, 128, 130),
    "2.12": (126, 130), "2.13": (126, 130), "2.14": (126, 130, 132),
}  # fmt: skip
"""torch -> the CUDA builds its project publishes for Linux on x86 and for Windows, experimental ones left out (PyTorch,
RELEASE.md, CUDA support matrix). 126 is called cu126."""
INDEXED = {"2.8": 128, "2.9": 128, "2.10": 128, "2.11": 130, "2.12": 130, "2.13": 130, "2.14": 132}
"""torch -> the build that the package index itself has for Linux; for Windows it has the one without CUDA."""
NEWEST = "2.13.0"
"""The version that constraints.txt pins."""
CARDS = {126: ((5, 0), 9), 128: ((7, 5), 12), 129: ((7, 0), 12), 130: ((7, 5), 12), 132: ((7, 5), 12)}
"""Build -> lowest compute capability, and highest major one, that it has code for (ibid.)."""


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver: its version, the newest CUDA version it runs, the cards it sees, their compute capabilities if told."""

    version: str
    cuda: tuple[int, int]
    cards: tuple[str, ...] = ()
    capabilities: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Build:
    """A build of torch that a driver takes. `line` is the pip command; `index` whether PyTorch's own index is in it."""

    name: str
    line: str
    index: bool


def look() -> Driver | None:
    """The driver of this machine, None where there is none that answers."""
    # Older drivers do not know compute_cap; then the plain query names the cards.
    cards = _nvidia_smi("--query-gpu=name,compute_cap", "--format=csv,noheader")
    cards = cards or _nvidia_smi("--query-gpu=name", "--format=csv,noheader")
    module = Path("/sys/module/nvidia/version")
    version = module.read_text(encoding="ascii", errors="replace") if module.is_file() else ""
    return read(_nvidia_smi(), cards, version)


def _nvidia_smi(*words: str) -> str:
    """What nvidia-smi prints, "" where it is not there or fails. On WSL it may be off the path."""
    tool = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"
    try:
        done = subprocess.run([tool, *words], capture_output=True, text=True, errors="replace", timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def read(table: str, cards: str = "", module: str = "") -> Driver | None:
    """A driver from nvidia-smi's table, its lines "name, compute capability", and /sys/module/nvidia/version.

    >>> read("| NVIDIA-SMI 550.54.14  Driver Version: 550.54.14  CUDA Version: 12.4 |", "NVIDIA A10, 8.6")
    Driver(version='550.54.14', cuda=(12, 4), cards=('NVIDIA A10',), capabilities=((8, 6),))
    """
    named = re.search(r"(?:Driver|KMD) Version:\s*(\d+[\d.]*)", table) or re.match(r"\s*(\d+[\d.]*)", module)
    if named is None:
        return None
    version = named[1]
    runtime = re.search(r"CUDA (?:UMD )?Version:\s*(\d+)\.(\d+)", table)
    branch = int(version.partition(".")[0])
    cuda = (int(runtime[1]), int(runtime[2])) if runtime else next((c for first, c in SINCE if branch >= first), (0, 0))
    names, capabilities = [], []
    for line in filter(str.strip, cards.splitlines()):
        name, _, capability = line.partition(",")
        names.append(name.strip())
        if number := re.fullmatch(r"\s*(\d+)\.(\d+)\s*", capability):
            capabilities.append((int(number[1]), int(number[2])))
    return Driver(version, cuda, tuple(names), tuple(capabilities))


def takes(driver: Driver, build: int) -> bool:
    """Whether a driver runs a build on all its cards.

    Within one major version of CUDA an older driver runs newer programs as well (CUDA minor version compatibility).

    >>> [takes(Driver("535.1", (12, 2)), build) for build in (126, 130)]
    [True, False]
    """
    low, high = CARDS[build]
    cards = all(capability >= low and capability[0] <= high for capability in driver.capabilities)
    return driver.cuda[0] >= build // 10 and cards


def build_for(driver: Driver, torch: str, system: str = "") -> Build | None:
    """The newest build of this version of torch ("2.13.0", "2.13.0+cpu") that the driver takes; None where none is.

    `system` is as platform.system() says it. A version newer than the table is taken for the newest in it.

    >>> build_for(Driver("560.35", (12, 6)), "2.13.0+cpu", "Windows").name
    'cu126'
    """
    version = torch.partition("+")[0]
    minor = ".".join(version.split(".")[:2])
    minor = minor if minor in BUILDS else list(BUILDS)[-1]
    build = next((one for one in reversed(BUILDS[minor]) if takes(driver, one)), None)
    if build is None:
        return None
    pip, name = f"{quoted(sys.executable or 'python')} -m pip", f"cu{build}"
    if (system or platform.system()) == "Linux" and INDEXED[minor] == build:
        return Build(name, f"{pip} uninstall -y torch; {pip} install torch=={version}", index=False)
    return Build(name, f"{pip} install torch=={version}+{name} --index-url INDEX/{name}", index=True)
