"""Seconds for a reader: exact for what was measured, rounded for what is foreseen."""

from __future__ import annotations

import math

from tuneloop.base.language import t


def duration(seconds: float) -> str:
    """A time that was measured.

    >>> duration(7.25), duration(59.6), duration(7380)
    ('7.2 s', '1 min 0 s', '2 h 3 min')
    """
    if round(seconds) < 60:
        return t("{s} s", s=f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}")
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return t("{m} min {s} s", m=minutes, s=rest)
    return t("{h} h {m} min", h=minutes // 60, m=minutes % 60)


def about(seconds: float) -> str:
    """A time that is estimated: no more digits than it deserves.

    >>> about(0), about(0.2), about(90), about(960), about(7380)
    ('0 s', '1 s', '90 s', '16 min', '2 h 3 min')
    """
    if seconds <= 90:
        return t("{s} s", s=max(round(seconds), math.ceil(min(seconds, 1))))
    minutes = round(seconds / 60)
    if minutes < 90:
        return t("{m} min", m=minutes)
    return t("{h} h {m} min", h=minutes // 60, m=minutes % 60)
