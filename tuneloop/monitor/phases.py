"""Where a step's time goes: reading its batches, forward, backward, the optimizer."""

from __future__ import annotations

import time

import torch

PHASES = ("data", "forward", "backward", "optimizer")
"""`data` lasts from the end of the step before until the batches lie on the device."""


class Phases:
    """The last step's seconds by phase.

    A card runs behind the program, so there its own clock is read: events are put into its stream and asked for only
    when somebody wants to know (`read`). No step waits for them.
    """

    def __init__(self, device: torch.device) -> None:
        self.events: list[torch.cuda.Event] | None = [] if device.type == "cuda" else None
        self.names: list[str] = []
        self.times: list[float] = []
        self.begin()

    def begin(self) -> None:
        """A step begins here; what is known of the one before is forgotten."""
        self.names, self.times = [], []
        self._stamp()

    def end(self, name: str) -> None:
        """What has passed since the last mark was phase `name`; a phase may come several times in a step."""
        self.names.append(name)
        self._stamp()

    def _stamp(self) -> None:
        if self.events is None:
            self.times.append(time.perf_counter())
            return
        if len(self.events) <= len(self.names):
            self.events.append(torch.cuda.Event(enable_timing=True))
        self.events[len(self.names)].record()

    def read(self) -> dict[str, float]:
        """Seconds of each phase in this step so far, in the order of PHASES. On a card it waits for what is marked."""
        seconds = dict.fromkeys(PHASES, 0.0)
        if self.events is not None:
            self.events[len(self.names)].synchronize()
        for k, name in enumerate(self.names):
            seconds[name] += self._between(k)
        return {name: round(spent, 4) for name, spent in seconds.items()}

    def _between(self, k: int) -> float:
        """Seconds between mark k and the next."""
        if self.events is None:
            return self.times[k + 1] - self.times[k]
        return float(self.events[k].elapsed_time(self.events[k + 1])) / 1000  # it tells milliseconds
