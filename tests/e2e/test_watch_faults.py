"""A run that meets trouble mends itself: it ends by the remedy that is promised, as good as if nothing had been.

SmolLM2 by LoRA, 40 steps, three seeds a fault; each is held against the healthy run of its seed.
"""

from __future__ import annotations

import pytest

from tests.e2e.watch_runs import FIRST_AT, SEEDS, Ended, Ground, Job, chat, close_to, finished, planted, raised
from tests.lives import metrics

pytestmark = [pytest.mark.slow, pytest.mark.real_model, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def mended(ground: Ground) -> dict[str, list[Ended]]:
    """The runs of each seed that meet no number or no memory, and those at a rate that is far too high."""
    jobs = [
        Job(name, chat("persona", seed), plant) for name in FIRST_AT for seed, plant in planted(ground, name).items()
    ]
    jobs += [Job("rate", chat("persona", seed, learning_rate=0.2)) for seed in SEEDS]
    ended = ground.train(jobs)
    finished(ended)
    return {
        name: [one for job, one in zip(jobs, ended, strict=True) if job.side == name] for name in (*FIRST_AT, "rate")
    }


def test_a_learning_rate_a_thousand_times_too_high(mended: dict[str, list[Ended]], healthy: list[Ended]) -> None:
    for one in mended["rate"]:
        assert {line["rule"] for line in one.alerts("bad")} & {"rebound", "exploding", "nan"}
        assert min(line["step"] for line in one.alerts("bad")) <= 20
        done = one.remedies()
        assert [line["remedy"] for line in done] == ["spike"] * len(done)
        assert done
        rates = [line["facts"]["rate"] for line in done]
        assert rates == sorted(rates, reverse=True)
        assert 1e-5 <= rates[-1] < 0.2
    close_to(healthy, mended["rate"])


def test_a_batch_without_a_number(mended: dict[str, list[Ended]], healthy: list[Ended]) -> None:
    for one in mended["nan"]:
        raised(one, "nan", FIRST_AT["nan"], "bad", within=0)
        first = one.remedies()[0]
        assert (first["remedy"], first["facts"]["at"]) == ("spike", FIRST_AT["nan"])
        assert first["amendment"]["skip"] == [FIRST_AT["nan"] - 1]
        assert first["facts"]["rate"] < 2e-4
        assert all(line["loss"] == line["loss"] for line in metrics(one.run) if "loss" in line), "no NaN"
    close_to(healthy, mended["nan"])


def test_an_allocation_that_fails_from_step_seven(mended: dict[str, list[Ended]], healthy: list[Ended]) -> None:
    for one, whole in zip(mended["memory"], healthy, strict=True):
        raised(one, "memory", FIRST_AT["memory"], "bad", within=0)
        done = one.remedies()
        assert [line["amendment"].get("micro_batch_size") for line in done] == [2, 1]
        assert {(line["remedy"], line["resume_at"]) for line in done} == {("memory", FIRST_AT["memory"] - 1)}
        batches = [[line["batch"] for line in metrics(ended.run) if "batch" in line] for ended in (one, whole)]
        assert batches[0] == batches[1], "the rows of each step are what they were"
    close_to(healthy, mended["memory"], within=0.01)
