"""The processes of one run, where torchrun or `accelerate launch` starts several: all train, one writes and speaks.

Each of them runs the same code. What only one may do (make the run folder, write metrics and checkpoints) the leader
does, and tells the others.
"""

from __future__ import annotations

from functools import cache
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from tuneloop.base.environment import launch
from tuneloop.base.errors import RunError
from tuneloop.base.language import listed, t

T = TypeVar("T")


def on_cpu() -> bool:
    """Whether this machine has nothing but its CPU; its processes then meet there (gloo)."""
    return not torch.accelerator.is_available()


@cache
def world() -> PartialState:
    """Who this process is among those of the run. Joins them when it is first asked.

    Raises TL-RUN-PEERS where the environment speaks of others and no launcher started this one, or they do not come.
    """
    count, variables, missing = launch()
    where = listed(variables)
    if variables and missing and (count > 1 or "LOCAL_RANK" in where):
        reason = t("the environment speaks of several processes, but not of {missing}", missing=listed(missing))
        raise RunError("TL-RUN-PEERS", where=where, error=reason, names=_names(variables))
    try:
        return PartialState(cpu=on_cpu())
    except (RuntimeError, ValueError, OSError) as error:  # torch's DistError is a RuntimeError
        if count < 2:
            raise
        reason = " ".join(str(error).split())[:300]
        raise RunError("TL-RUN-PEERS", where=where, error=reason, names=_names(variables)) from error


def _names(variables: list[str]) -> str:
    return " ".join(one.partition("=")[0] for one in variables)


def leads() -> bool:
    """Whether this is the process that writes and speaks."""
    return bool(world().is_main_process)


def shared(facts: T) -> T:
    """The leader's value, in every process. All of them must ask."""
    box = [facts]
    if world().num_processes > 1:
        broadcast_object_list(box)
    return box[0]


def anyone(wants: bool) -> bool:
    """Whether any process wants something. All of them must ask: one that stops alone leaves the others waiting."""
    return any(gather_object([wants])) if world().num_processes > 1 else wants
