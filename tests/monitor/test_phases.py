from __future__ import annotations

import time

import pytest
import torch

from tuneloop.monitor.phases import PHASES, Phases


def test_the_seconds_of_a_step_are_told_by_phase() -> None:
    phases = Phases(torch.device("cpu"))
    began = time.perf_counter()
    for name, seconds in (("data", 0.02), ("forward", 0.01), ("backward", 0.03), ("forward", 0.01), ("backward", 0.01)):
        time.sleep(seconds)
        phases.end(name)
    phases.end("optimizer")
    whole = time.perf_counter() - began
    seconds = phases.read()
    assert list(seconds) == list(PHASES)
    assert seconds["data"] >= 0.02
    assert seconds["forward"] >= 0.02
    assert seconds["backward"] >= 0.04
    assert 0 <= seconds["optimizer"] < 0.02
    assert sum(seconds.values()) == pytest.approx(whole, abs=2e-3)


def test_a_step_forgets_the_one_before_and_what_lay_between() -> None:
    phases = Phases(torch.device("cpu"))
    time.sleep(0.03)
    phases.end("data")
    time.sleep(0.03)  # a checkpoint, say
    phases.begin()
    phases.end("data")
    phases.end("optimizer")
    assert sum(phases.read().values()) < 0.02
    phases.begin()
    assert phases.read() == dict.fromkeys(PHASES, 0.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no card")
def test_a_card_tells_its_own_time() -> None:
    device = torch.device("cuda")
    a = torch.randn(4096, 4096, device=device)
    phases = Phases(device)
    for _ in range(3):
        phases.begin()
        phases.end("data")
        began = time.perf_counter()
        for _ in range(50):
            a @ a
        phases.end("forward")
        asked = time.perf_counter() - began
        phases.end("optimizer")
    torch.cuda.synchronize()
    seconds = phases.read()
    assert seconds["forward"] > asked, "the program was through before the card"
    assert seconds["forward"] > 10 * seconds["optimizer"]
    assert len(phases.events or []) == 4, "events are used again"
