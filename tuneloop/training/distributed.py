"""The processes of one run, where torchrun or `accelerate launch` starts several: all train, one writes and speaks.

Each of them runs the same code. What only one may do (make the run folder, write metrics and checkpoints) the leader
does, and tells the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from tuneloop.base.environment import launch
from tuneloop.base.errors import RunError
from tuneloop.base.language import listed, t

T = TypeVar("T")
BUCKET = 25 << 20
"""Bytes of gradients that are sent together."""


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


@contextmanager
def same_end(ending: Callable[[], Exception], meant: Callable[[BaseException], bool]) -> Iterator[None]:
    """Work that one process may fail at while the others do not: if one fails as `meant` says, all raise `ending()`.

    The work itself must not wait for other processes. Other errors pass as they are.
    """
    failed: BaseException | None = None
    try:
        yield
    except Exception as error:
        if not meant(error):
            raise
        failed = error.with_traceback(None)  # its frames hold what filled the memory
    if anyone(failed is not None):
        raise ending() from failed


def average_gradients(weights: Sequence[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in buckets of neighbours. All of them must ask."""
    count = world().num_processes
    if count < 2:
        return
    bucket: list[torch.Tensor] = []
    for grad in [p.grad for p in weights if p.grad is not None]:
        if bucket and (grad.dtype != bucket[0].dtype or sum(map(_bytes, bucket)) + _bytes(grad) > BUCKET):
            _average(bucket, count)
            bucket = []
        bucket.append(grad)
    if bucket:
        _average(bucket, count)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _average(bucket: list[torch.Tensor], count: int) -> None:
    flat = torch.cat([grad.reshape(-1) for grad in bucket]) / count
    torch.distributed.all_reduce(flat)
    for grad, mean in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
        grad.copy_(mean.view_as(grad))
