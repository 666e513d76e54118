from __future__ import annotations

import pytest

from tuneloop.base.duration import about, duration


@pytest.mark.parametrize(
    ("seconds", "exact", "rough"),
    [
        (0, "0.0 s", "0 s"), (0.04, "0.0 s", "1 s"), (59.4, "59 s", "59 s"), (90, "1 min 30 s", "90 s"),
        (91, "1 min 31 s", "2 min"), (960, "16 min 0 s", "16 min"), (5300, "1 h 28 min", "88 min"),
        (5400, "1 h 30 min", "1 h 30 min"), (90000, "25 h 0 min", "25 h 0 min"),
    ],
)  # fmt: skip
def test_times_for_readers(seconds: float, exact: str, rough: str) -> None:
    assert (duration(seconds), about(seconds)) == (exact, rough)
