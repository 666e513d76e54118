"""What this machine is: the words of a result's first column."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

WANTED = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "bf16", "amx_bf16": "AMX bf16",
          "amx_int8": "AMX int8"}  # fmt: skip
"""Flags of /proc/cpuinfo that decide how fast matrices are multiplied."""


def machine() -> dict[str, Any]:
    """The processor, its cores and what it can, the memory (GB, 1e9), the system and Python."""
    import psutil

    cpu = Path("/proc/cpuinfo")
    text = cpu.read_text(encoding="utf-8") if cpu.is_file() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = set((re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE) or ["", ""])[1].split())
    return {
        "cpu": name[1].strip() if name else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "can": [word for flag, word in WANTED.items() if flag in flags],
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.system(), "python": platform.python_version(),
    }  # fmt: skip
