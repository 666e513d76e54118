"""A graphics card that goes away: told as what it is, with the checkpoint to go on from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from tuneloop.base.errors import MachineError
from tuneloop.base.language import t
from tuneloop.model import checkpoint

LOST = ("CUDA error", "HIP error", "NCCL error", "cuBLAS error", "CUBLAS_STATUS", "CUDNN_STATUS", "NVML")
"""What a RuntimeError says where the device or its driver has failed; running out of memory is no such thing."""


@contextlib.contextmanager
def watched(checkpoints: Path) -> Iterator[None]:
    """Turn the failure of a device inside into TL-MACHINE-DEVICE, which names the newest checkpoint."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, torch.AcceleratorError) and not any(sign in text for sign in LOST):
            raise
        raise _lost(checkpoints, text.splitlines()[0][:200]) from error


def _lost(checkpoints: Path, message: str) -> MachineError:
    last = checkpoint.newest(checkpoints)
    name = last.name if last else t("none yet")
    return MachineError("TL-MACHINE-DEVICE", where=str(checkpoints), error=message, checkpoint=name)


def require_device(path: Path) -> None:
    """Raise TL-MACHINE-DEVICE where a checkpoint was made on more graphics cards than there are now.

    Another kind of device computes other roundings and other dropout: the run would not be the same any more.
    """
    with safe_open(path / "random.safetensors", "pt") as file:
        cards = sum(name.startswith("cuda.") for name in file.keys())  # noqa: SIM118
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if cards and not available:
        raise MachineError(
            "TL-MACHINE-DEVICE",
            where=str(path),
            checkpoint=path.name,
            error=t("it was made on {n} CUDA devices, and there are none now", n=cards),
        )
