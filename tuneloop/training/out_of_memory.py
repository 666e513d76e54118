"""Running out of memory in a step: how it is recognised, and told."""

from __future__ import annotations

import torch

from tuneloop.base.errors import RunError

SAID = (
    "out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "std::bad_alloc",
    "is killed by signal: killed",
)  # fmt: skip
"""Parts of what torch's RuntimeErrors say of it: on a card, in its libraries, on a CPU, of workers."""


def ran_out(error: BaseException) -> bool:
    """Whether an error means that an allocation failed, on a card or on a CPU.

    >>> ran_out(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"))
    True
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error).lower() for part in SAID)


class OutOfMemory(RunError):
    """TL-RUN-MEMORY: in step `number` (from 1) memory ran out, on this process or on another one.

    `intact`: the weights and the optimizer are those of the step before; else it may be half taken.
    """

    def __init__(self, number: int, *, intact: bool = True) -> None:
        super().__init__("TL-RUN-MEMORY", where=f"step {number}", step=number)
        self.number, self.intact = number, intact
