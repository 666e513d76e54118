"""Where the longest rows do not fit the memory: the largest that would, what each costs, the line to write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.base.language import t
from tuneloop.recipe.schema import TrainPart

LEAST = 16
"""The shortest limit that a recipe may set."""
STEP = 64
"""Lengths above it are rounded down to a multiple of it."""


@dataclass(frozen=True, slots=True)
class Option:
    """A length that fits: what to write for it, and how many of all training rows are longer."""

    length: int
    rows: int
    of: int
    settings: dict[str, Any]

    @property
    def line(self) -> str:
        return ", ".join(f"{key}: {str(setting).lower()}" for key, setting in self.settings.items())

    @property
    def assignments(self) -> list[str]:
        """The same for --set."""
        return [f"{key}={str(setting).lower()}" for key, setting in self.settings.items()]

    def __str__(self) -> str:
        return t("{line} ({rows} of {all} training rows are longer)", line=self.line, rows=self.rows, all=self.of)


def options(
    lengths: NDArray[np.integer[Any]],
    each: int,
    train: TrainPart,
    need: Callable[[TrainPart, int], float],
    free: float,
    *,
    checkpointing: bool,
) -> list[Option]:
    """What fits `room` GB, as the recipe is and with checkpointing, where the method allows it.

    `lengths` int [rows] are the tokens of each row's longest text, of which `each` share a forward pass; `need` tells
    the GB of a run by its settings and the tokens of its fullest pass.
    """
    out: list[Option] = []
    for on in dict.fromkeys((train.checkpointing, train.checkpointing or checkpointing)):
        wanted = train.model_copy(update={"checkpointing": on})
        length = _largest(int(lengths.max()), lambda n, wanted=wanted: need(wanted, each * n) <= free)  # type: ignore[misc]
        if not length:
            continue
        rows = int((lengths > length).sum())
        if out and rows >= out[-1].rows:
            continue
        settings: dict[str, Any] = {"prepare.max_length": length, "train.token_budget": each * length}
        if on and not train.checkpointing:
            settings["train.checkpointing"] = True
        out.append(Option(length, rows, len(lengths), settings))
    return out


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest length up to `most` that fits, rounded down; 0 where none does.

    >>> _largest(1000, lambda n: n <= 700), _largest(1000, lambda n: n <= 1000), _largest(1000, lambda n: False)
    (640, 1000, 0)
    """
    low, high = LEAST - 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    if low < LEAST:
        return 0
    return low if low == most or low < STEP else low // STEP * STEP
