"""The device that a proof runs on, and what is told of it."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import torch

from tuneloop import __version__
from tuneloop.base.language import t
from tuneloop.model.load import pick_dtype
from tuneloop.planning.hardware import look

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "flash_attn",
    "triton",
    "trl",
    "liger_kernel",
)


def here() -> torch.device:
    """The card where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def weights_dtype() -> torch.dtype:
    """The type that weights are held in here."""
    return pick_dtype("auto")


def halves() -> list[str]:
    """The 16-bit types that this device computes in."""
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return ["float16"]
    return ["bfloat16", "float16"]


def budget() -> int:
    """Tokens a pass that the 1.5B shape has room for, with what a layer keeps: 3.4 MB a token, and 4 GB beside it.

    >>> [_tokens(gb) for gb in (7.6, 15.5, 23.5, 79.0)]
    [1024, 2048, 4096, 8192]
    """
    return _tokens(torch.cuda.mem_get_info()[0] / 1e9)


def _tokens(free_gb: float) -> int:
    return next((n for n in (8192, 4096, 2048) if 4 + 3.4e-3 * n < free_gb), 1024)


def size(model: Path) -> str:
    """What a model drawn at random is called in the report."""
    held = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    return t("random Qwen2 shape of {n:,.0f} million weights", n=held / weights_dtype().itemsize / 1e6)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _driver() -> str:
    """The version of NVIDIA's driver, "" where the system does not tell."""
    path = Path("/sys/module/nvidia/version")
    return path.read_text(encoding="ascii").strip() if path.is_file() else ""


def facts() -> list[tuple[str, str]]:
    """What the report names: device, driver, types, versions."""
    machine, device = look(), here()
    pairs = [(t("device"), ", ".join(machine.gpus) or t("no CUDA device: these lines ran on the CPU")),
             (t("processor"), f"{machine.cpu}, {machine.cores}"),
             (t("system"), f"{machine.system}, Python {platform.python_version()}"),
             ("tuneloop", __version__)]  # fmt: skip
    if device.type == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        pairs[1:1] = [
            (t("memory"), f"{torch.cuda.get_device_properties(device).total_memory / 1e9:.1f} GB"),
            (t("compute capability"), capability),
            (t("driver, CUDA, cuDNN"), f"{_driver() or '–'}, {torch.version.cuda}, {torch.backends.cudnn.version()}"),
        ]
    return pairs + [(name, version) for name in PACKAGES if (version := _version(name))]
