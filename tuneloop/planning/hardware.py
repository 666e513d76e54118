"""What this machine has: cores, memory, graphics cards, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from tuneloop.base.environment import cores
from tuneloop.model.kernels.matmul import MatmulPrecision, matmul_precision
from tuneloop.monitor.machine import ContainerMemory
from tuneloop.monitor.meters import OtherPrograms


@dataclass(frozen=True, slots=True)
class Hardware:
    """Memory in GB (1e9 bytes). Rates are measured in the type asked for, 0 where nothing was asked.

    `gflops` is that of square matrix products in that type, as in evaluation; of a 16-bit type on a CPU that of a
    layer's products, forward and backward, and beside it `float32_gflops`. `bfloat16_gflops` is that of float32
    matrices which are multiplied in bfloat16, where training does so; `weights_gbs` the GB of weights a second that
    products of a few rows get through, as in generation. `others` are the cores that other programs kept busy
    meanwhile, of `all_cores` in the machine; `threads` are those that a product uses.
    """

    system: str
    cpu: str
    cores: int
    memory_gb: float
    free_gb: float
    device: str
    gpus: tuple[str, ...]
    gpu_memory_gb: float
    gflops: float
    weights_gbs: float = 0.0
    bfloat16_gflops: float = 0.0
    float32_gflops: float = 0.0
    others: float = 0.0
    all_cores: int = 0
    threads: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def room_gb(self) -> float:
        """Memory a run may use on the device it will use."""
        return self.gpu_memory_gb if self.device == "cuda" else self.free_gb

    @property
    def spare(self) -> float:
        """The share of the cores it needs that a run finds idle, 0 to 1. What other cores do is nothing to it."""
        if not self.all_cores:
            return 1.0
        return max(0.0, min(1.0, (self.all_cores - self.others) / min(self.cores, self.threads or self.cores)))


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _free_memory() -> int:
    """Bytes that may be had: the system's, or less where a container has a limit of its own."""
    free, limited = int(psutil.virtual_memory().available), ContainerMemory().read()
    return free if limited is None else min(free, limited[1])


def product_rate(dtype: torch.dtype, device: str, size: int = 0, seconds: float = 0.25) -> float:
    """GFLOP/s of square matrix products, the best of several, so that a busy moment does not count.

    A card needs large ones: it is through with those of 1024 before the next can be asked for.
    """
    size = size or (8192 if device == "cuda" else 1024)
    a = torch.randn(size, size, dtype=dtype, device=device)
    b = torch.randn(size, size, dtype=dtype, device=device)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def layer_rate(dtype: torch.dtype, tokens: int = 128, width: int = 512, inner: int = 1024) -> float:
    """GFLOP/s of a frozen layer's two products, forward and of its input's gradient, the best of a few.

    Where a processor has no units for a type, the two differ by as much as ten times, and a large square is the worst
    case: it tells nothing of a training step.
    """
    x, weight = torch.randn(tokens, width).to(dtype), torch.randn(inner, width).to(dtype)
    gradient = torch.randn(tokens, inner).to(dtype)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < 0.25:
        start = time.perf_counter()
        x @ weight.T
        gradient @ weight
        best = min(best, time.perf_counter() - start)
    return 4 * tokens * width * inner / best / 1e9


def weights_rate(dtype: torch.dtype, device: str, rows: int, width: int = 0, seconds: float = 0.15) -> float:
    """GB a second of a weight matrix larger than the caches, in products with `rows` rows: a step of generation."""
    width = width or (16384 if device == "cuda" else 4096)
    weight = torch.ones(width, width, dtype=dtype, device=device)
    x = torch.ones(rows, width, dtype=dtype, device=device)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        x @ weight.T
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return weight.numel() * weight.itemsize / best / 1e9


def look(dtype: torch.dtype | None = None, rows: int = 1, training: MatmulPrecision = "float32") -> Hardware:
    """Read this machine; with a type, measure its rates as well (under a second), for `rows` answers at once.

    `training` is how training multiplies float32 matrices on a CPU.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory = psutil.virtual_memory()
    cards = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    card_free = torch.cuda.mem_get_info()[0] / 1e9 if cards else 0.0
    others, rates = OtherPrograms(), _rates(dtype, device, training)
    weights = weights_rate(dtype, device, rows) if dtype is not None else 0.0
    return Hardware(
        system=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_name(),
        cores=cores(),
        memory_gb=round(memory.total / 1e9, 1),
        free_gb=round(_free_memory() / 1e9, 1),
        device=device,
        gpus=cards,
        gpu_memory_gb=round(card_free, 1),
        weights_gbs=round(weights, 2),
        others=round(others.cores(), 1) if dtype is not None else 0.0,
        all_cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        **{name: round(rate, 1 if rate >= 10 else 3) for name, rate in rates.items()},
    )


def _rates(dtype: torch.dtype | None, device: str, training: MatmulPrecision) -> dict[str, float]:
    """The rates of products that a plan needs, GFLOP/s by the field of Hardware."""
    if dtype is None:
        return {"gflops": 0.0}
    if device != "cpu" or dtype.itemsize > 2:
        rates = {"gflops": product_rate(dtype, device)}
    else:
        rates = {"gflops": layer_rate(dtype), "float32_gflops": product_rate(torch.float32, device)}
    if training == "bfloat16" and dtype == torch.float32 and device == "cpu":
        with matmul_precision(training):
            rates["bfloat16_gflops"] = product_rate(dtype, device)
    return rates
