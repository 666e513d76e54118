"""A run that meets trouble mends itself: it ends by the remedy that is promised, as good as if nothing had been.

SmolLM2 by LoRA, 40 steps, three seeds a fault; each is held against the healthy run of its seed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.e2e import watch_faults
from tests.e2e.watch_runs import SEEDS, Ended, Ground, Job, chat, close_to, finished, raised
from tests.lives import assert_same, metrics
from tuneloop import pipeline
from tuneloop.data.batches.plan import batch_plan

pytestmark = [pytest.mark.slow, pytest.mark.real_model, pytest.mark.timeout(1200)]
AT = {"nan": 12, "memory": 7}
"""The step at which a fault is met first."""


def row_of_step(ground: Ground, seed: int, step: int) -> int:
    """A row that the batch of a step holds, counted in the training side; later epochs hold it as well."""
    recipe = chat("persona", seed)
    given = pipeline.assembled(recipe, ground.prepared(recipe)[0], ground.folder)
    return batch_plan(recipe, given.train).step(step - 1)[0][0]


def faults(ground: Ground, name: str) -> list[Callable[[], None]]:
    """What is planted for each seed."""
    if name == "memory":
        return [lambda: watch_faults.no_memory(AT["memory"], rows=1)] * len(SEEDS)
    rows = [row_of_step(ground, seed, AT["nan"]) for seed in SEEDS]
    return [lambda row=row: watch_faults.no_number(row) for row in rows]


@pytest.fixture(scope="module")
def mended(ground: Ground) -> dict[str, list[Ended]]:
    """The runs of each seed that meet no number, or no memory."""
    jobs = [
        Job(name, chat("persona", seed), plant)
        for name in AT
        for seed, plant in zip(SEEDS, faults(ground, name), strict=True)
    ]
    ended = ground.train(jobs)
    finished(ended)
    return {name: [one for job, one in zip(jobs, ended, strict=True) if job.side == name] for name in AT}


def test_a_learning_rate_a_thousand_times_too_high(ground: Ground, healthy: list[Ended]) -> None:
    ended = ground.train([Job("rate", chat("persona", seed, learning_rate=0.2)) for seed in SEEDS])
    finished(ended)
    for one in ended:
        assert {line["rule"] for line in one.alerts("bad")} & {"rebound", "exploding", "nan"}
        assert min(line["step"] for line in one.alerts("bad")) <= 20
        done = one.remedies()
        assert [line["remedy"] for line in done] == ["spike"] * len(done)
        assert done
        rates = [line["facts"]["rate"] for line in done]
        assert rates == sorted(rates, reverse=True)
        assert 1e-5 <= rates[-1] < 0.2
    close_to(healthy, ended)


def test_a_batch_without_a_number(mended: dict[str, list[Ended]], healthy: list[Ended]) -> None:
    for one in mended["nan"]:
        raised(one, "nan", AT["nan"], "bad", within=0)
        first = one.remedies()[0]
        assert (first["remedy"], first["facts"]["at"]) == ("spike", AT["nan"])
        assert first["amendment"]["skip"] == [AT["nan"] - 1]
        assert first["facts"]["rate"] < 2e-4
        assert all(line["loss"] == line["loss"] for line in metrics(one.run) if "loss" in line), "no NaN"
    close_to(healthy, mended["nan"])


def test_an_allocation_that_fails_from_step_seven(mended: dict[str, list[Ended]], healthy: list[Ended]) -> None:
    for one, whole in zip(mended["memory"], healthy, strict=True):
        raised(one, "memory", AT["memory"], "bad", within=0)
        done = one.remedies()
        assert [line["amendment"].get("micro_batch_size") for line in done] == [2, 1]
        assert {(line["remedy"], line["resume_at"]) for line in done} == {("memory", AT["memory"] - 1)}
        batches = [[line["batch"] for line in metrics(ended.run) if "batch" in line] for ended in (one, whole)]
        assert batches[0] == batches[1], "the rows of each step are what they were"
    close_to(healthy, mended["memory"], within=0.01)


@pytest.mark.parametrize("name", list(AT))
def test_a_mended_run_that_is_killed_goes_on_bit_for_bit(
    name: str, ground: Ground, mended: dict[str, list[Ended]]
) -> None:
    plant, whole = faults(ground, name)[0], mended[name][0]
    kill = whole.remedies()[0]["resume_at"] + 3

    def dying() -> None:
        plant()
        watch_faults.killed(kill)

    (died,) = ground.train([Job(f"{name}-killed", chat("persona", SEEDS[0]), dying)])
    assert died.status == -signal.SIGKILL, died.log[-2000:]
    assert died.remedies(), "it was killed after its remedy"
    assert died.run.trained_folder() is None
    resumed = ground.resume(died.run, plant)
    finished([resumed])
    assert_same(whole.run, resumed.run)
