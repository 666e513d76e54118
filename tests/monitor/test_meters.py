from __future__ import annotations

import time

import pytest
import torch

from tuneloop.monitor.meters import Meter, memory_gb


def test_a_reading_is_of_what_happened_since_the_last() -> None:
    meter = Meter()
    time.sleep(0.05)
    first = meter.read(100)
    time.sleep(0.1)
    second = meter.read(300)
    assert 0.05 <= first["seconds"] < 0.09
    assert 0.1 <= second["seconds"] < 0.16
    assert second["tokens_per_second"] == pytest.approx(300 / second["seconds"], rel=0.02)
    assert abs(second["time"] - time.time()) < 1
    assert (meter.last_seconds, meter.last_gb) == pytest.approx((second["seconds"], second["memory_gb"]), abs=1e-3)


def test_what_is_no_training_does_not_count() -> None:
    meter = Meter()
    time.sleep(0.02)
    meter.read(100)
    time.sleep(0.2)
    meter.pause()
    time.sleep(0.02)
    assert meter.read(100)["seconds"] < 0.1
    assert meter.tokens_per_second == pytest.approx(200 / meter.total_seconds)
    assert meter.total_seconds < 0.15
    assert meter.total_tokens == 200


def test_nothing_read_is_no_speed() -> None:
    assert Meter().tokens_per_second == 0


def test_memory_is_that_of_the_process_and_the_peak_stays() -> None:
    meter = Meter()
    meter.read(1)
    before = memory_gb()
    held = torch.ones(64 * 2**20)  # 256 MiB
    meter.read(1)
    assert memory_gb() - before == pytest.approx(0.25, abs=0.05)
    peak = meter.peak_gb
    del held
    meter.read(1)
    assert meter.peak_gb == peak
    assert meter.last_gb < peak - 0.2
