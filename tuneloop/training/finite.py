"""Whether a run's losses and gradients are numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tuneloop.base.errors import RunError
from tuneloop.training import distributed


class NotANumber(RunError):
    """TL-RUN-NAN: the loss or the gradient norm of step `number` (from 1) was no number."""

    def __init__(self, number: int, loss: float, norm: float) -> None:
        super().__init__("TL-RUN-NAN", where=f"step {number}", loss=f"{loss:.4g}", norm=f"{norm:.4g}")
        self.number = number


class Finite:
    """Keeps the weights those of the last good step once a loss or its gradient is no number.

    Where reading a number costs no wait, and where the optimizer cannot skip a step by itself, each step is read and
    the run ends before a bad one is taken. On a card torch's fused optimizers learn it on the device (`found_inf`, as
    from its GradScaler): they skip that step and all after it, and the run ends when its numbers are next read. Of
    several processes each reads each step, so that all end at the same one.
    """

    def __init__(self, optimizer: Any, device: torch.device) -> None:
        self.optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's holds torch's own
        fused = isinstance(self.optimizer, torch.optim.AdamW) and self.optimizer.defaults.get("fused")
        self.late = bool(device.type == "cuda" and fused and distributed.world().num_processes == 1)
        self.first = torch.zeros(3, device=device)
        """Number, loss and gradient norm of the first bad step; the number is 0 as long as there is none."""

    def see(self, number: int, total: Tensor, norm: Tensor, weight: float) -> None:
        """Look at step `number` (from 1) before it is taken: the sum of its losses, and the norm of its gradient."""
        if not self.late:
            if not (math.isfinite(float(total)) and math.isfinite(float(norm))):
                self.first = torch.tensor([number, float(total) / weight, float(norm)])
                self.require()
            return
        bad = ~(torch.isfinite(total) & torch.isfinite(norm)) & (self.first[0] == 0)
        here = torch.stack([torch.full_like(total, number), total / weight, norm.to(total)])
        self.first = torch.where(bad, here, self.first)
        self.optimizer.found_inf = (self.first[0] > 0).float()

    def require(self) -> None:
        """Raise TL-RUN-NAN where a step was bad; the weights are those of the last good one."""
        if not self.late and not self.first.any():
            return
        number, loss, norm = self.first.tolist()
        if number:
            raise NotANumber(int(number), loss, norm)
