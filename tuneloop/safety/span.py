"""A place in a text, and what was found there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """`text` is what stands at [start, end) of the original text, in characters; `kind` says what it is."""

    kind: str
    start: int
    end: int
    text: str


def disjoint(spans: Iterable[tuple[int, int, int, str]]) -> list[tuple[int, int, str]]:
    """Of (rank, start, end, kind), those that do not overlap: lower rank wins, then the longer, then the earlier.

    >>> disjoint([(1, 0, 9, "long"), (0, 3, 5, "special"), (1, 6, 9, "other")])
    [(3, 5, 'special'), (6, 9, 'other')]
    """
    ordered = sorted(set(spans), key=lambda s: (s[0], s[1] - s[2], s[1]))
    taken = bytearray(max((end for _, _, end, _ in ordered), default=0))
    chosen = []
    for _, start, end, kind in ordered:
        if taken.find(1, start, end) < 0:
            taken[start:end] = b"\x01" * (end - start)
            chosen.append((start, end, kind))
    return sorted(chosen)
