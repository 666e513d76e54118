"""The processes of one run, where torchrun or `accelerate launch` starts several: all train, one writes and speaks.

Each of them runs the same code. What only one may do (make the run folder, write metrics and checkpoints) the leader
does, and tells the others.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

T = TypeVar("T")


def on_cpu() -> bool:
    """Whether this machine has nothing but its CPU; its processes then meet there (gloo)."""
    return not torch.accelerator.is_available()


def world() -> PartialState:
    """Who this process is among those of the run. Joins them when it is first asked."""
    return PartialState(cpu=on_cpu())


def leads() -> bool:
    """Whether this is the process that writes and speaks."""
    return bool(world().is_main_process)


def shared(value: T) -> T:
    """The leader's value, in every process. All of them must ask."""
    box = [value]
    if world().num_processes > 1:
        broadcast_object_list(box)
    return box[0]


def anyone(wants: bool) -> bool:
    """Whether any process wants something. All of them must ask: one that stops alone leaves the others waiting."""
    return any(gather_object([wants])) if world().num_processes > 1 else wants
