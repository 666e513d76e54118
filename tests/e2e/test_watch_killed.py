"""A mended run of SmolLM2 that is killed afterwards goes on bit for bit."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.e2e import watch_faults
from tests.e2e.watch_runs import FIRST_AT, SEEDS, Ground, Job, chat, finished, planted
from tests.lives import assert_same

pytestmark = [pytest.mark.slow, pytest.mark.real_model, pytest.mark.timeout(1200)]


def dying(plant: Callable[[], None], step: int) -> Callable[[], None]:
    def both() -> None:
        plant()
        watch_faults.killed(step)

    return both


def test_a_mended_run_that_is_killed_goes_on_bit_for_bit(ground: Ground) -> None:
    """Without a number from step 12 on in one, without the memory of step 7 in the other."""
    recipe, faults = chat("persona", SEEDS[0]), {name: planted(ground, name)[SEEDS[0]] for name in FIRST_AT}
    whole = ground.train([Job(name, recipe, plant) for name, plant in faults.items()])
    finished(whole)
    kills = [one.remedies()[0]["resume_at"] + 3 for one in whole]
    jobs = [Job(f"{name}-killed", recipe, dying(faults[name], at)) for name, at in zip(faults, kills, strict=True)]
    died = ground.train(jobs)
    for one in died:
        assert one.status == -signal.SIGKILL, one.log[-2000:]
        assert one.remedies(), "it was killed after its remedy"
        assert one.run.trained_folder() is None
    resumed = ground.resume({one.run: plant for one, plant in zip(died, faults.values(), strict=True)})
    finished(resumed)
    for one, other in zip(whole, resumed, strict=True):
        assert_same(one.run, other.run)
