from __future__ import annotations

import pytest

from tuneloop.monitor.smoothing import Smooth


def test_the_mean_has_no_bias_to_the_start_and_forgets() -> None:
    mean = Smooth()
    assert [mean.add(3.0) for _ in range(5)] == pytest.approx([3.0] * 5)
    values = [mean.add(1.0) for _ in range(60)]
    assert values == sorted(values, reverse=True)
    assert values[4] == pytest.approx(2.0, abs=0.3), "of ten lines half and half"
    assert values[-1] == pytest.approx(1.0, abs=0.01)
