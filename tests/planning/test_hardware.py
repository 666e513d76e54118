from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
import torch

from tuneloop.base.environment import cores
from tuneloop.planning.hardware import Hardware, look, product_rate, weights_rate

CARD = Hardware("Linux x86_64", "cpu", 8, 64.0, 50.0, "cuda", ("Card",), 22.5, 9000.0)


def test_this_machine_is_described_as_it_is() -> None:
    seen = look()
    assert 1 <= seen.cores <= (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    assert seen.cores == cores()
    assert seen.memory_gb == pytest.approx(psutil.virtual_memory().total / 1e9, abs=0.1)
    assert 0 < seen.free_gb <= seen.memory_gb
    assert seen.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert len(seen.gpus) == torch.cuda.device_count()
    assert seen.gflops == seen.weights_gbs == 0, "nothing is measured where nothing is asked"
    assert seen.cpu
    assert json.loads(json.dumps(seen.as_dict()))["cores"] == seen.cores


def test_room_is_that_of_the_device_that_is_used() -> None:
    from dataclasses import replace

    assert CARD.room_gb == 22.5
    assert replace(CARD, device="cpu").room_gb == 50.0


def test_the_rate_is_that_of_matrix_products() -> None:
    before = torch.get_rng_state()
    rate = look(torch.float32).gflops
    assert 0.5 < rate < 1e7
    size, repeats = 512, 5
    a = torch.randn(size, size)
    import time

    best = min((time.perf_counter(), a @ a, time.perf_counter()) for _ in range(repeats))
    assert best
    assert product_rate(torch.float32, "cpu", size=256, seconds=0.05) > rate / 20
    torch.set_rng_state(before)


def test_weights_are_read_once_a_product_however_many_rows() -> None:
    """GB of weights a second: a product with many rows takes longer for the same weights."""
    few, many = (weights_rate(torch.float32, "cpu", rows, width=1024, seconds=0.05) for rows in (1, 256))
    assert few > many > 0
    assert look(torch.float32, rows=4).weights_gbs > 0


def test_products_below_float32_are_measured_where_they_are_asked_for() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    assert look(torch.float32).bfloat16_gflops == 0
    assert (look(torch.float32, 1, "bfloat16").bfloat16_gflops > 0) != torch.cuda.is_available()
    half = look(torch.bfloat16, 1, "bfloat16")
    assert half.bfloat16_gflops == 0, "they are for float32"
    assert (half.float32_gflops > 0) != torch.cuda.is_available(), "what a 16-bit type is compared with"
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes are not tied to cores here")
def test_what_other_programs_take_is_measured() -> None:
    """Real programs that keep every core busy, one each; this process's own work is not theirs."""
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        time.sleep(0.5)
        seen = look(torch.float32)
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    assert seen.others > 0.3 * len(spinners)
    assert seen.others <= 1.05 * (os.cpu_count() or 1)
