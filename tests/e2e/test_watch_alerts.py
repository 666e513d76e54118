"""Each planted fault raises its alert within 20 steps of its effect, in a run that is looked at and left alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.e2e import watch_faults
from tests.e2e.watch_runs import (
    ALONE,
    MINILM,
    SEEDS,
    Ground,
    Job,
    chat,
    finished,
    overfitting,
    raised,
    recorded,
    sentiment,
)
from tests.lives import metrics
from tests.real import pulled

pytestmark = [pytest.mark.slow, pytest.mark.real_model, pytest.mark.timeout(1200)]
EFFECT = 25
"""The step from which on a fault is there, in a run of 56 steps."""
PLANTED: dict[str, Callable[[], None]] = {
    "rate": partial(watch_faults.rate_zero, EFFECT),
    "vanishing": partial(watch_faults.faded, EFFECT),
    "throughput": partial(watch_faults.slow_loader, EFFECT, EFFECT + 9, 8.0),
}
"""Rule -> the fault that it is there for."""


@pytest.mark.parametrize("rule", list(PLANTED))
def test_a_fault_in_the_middle_of_a_run(rule: str, ground: Ground) -> None:
    pulled(MINILM)
    (ended,) = ground.train([Job(rule, sentiment("full", 1, watch=ALONE), PLANTED[rule])])
    finished([ended])
    recorded(ended, f"faulty-{rule}-1")
    alert = raised(ended, rule, EFFECT)
    assert alert["since"] >= EFFECT
    assert not ended.remedies()
    assert {line["rule"] for line in ended.alerts()} == {rule}, "and of nothing else"


def test_a_rate_a_thousand_times_too_high_is_seen_in_time(ground: Ground) -> None:
    ended = ground.train([Job("alone", chat("persona", seed, watch=ALONE, learning_rate=0.2)) for seed in SEEDS])
    for one in ended:
        recorded(one, f"faulty-thousandfold-{one.run.name[-3]}")
        steps = [line["step"] for line in one.alerts("bad") if line["rule"] in ("rebound", "exploding", "nan")]
        assert steps
        assert min(steps) <= 20
        assert not one.remedies()


def test_rows_that_are_learned_by_heart(ground: Ground) -> None:
    """Told while the run is left alone; and ended at the best checkpoint where it is not."""
    left, ended = ground.train([Job("left", overfitting(1, watch=ALONE)), Job("ended", overfitting(1))])
    finished([left, ended])
    recorded(left, "faulty-overfit-1")
    held = {line["step"]: line["eval_loss"] for line in metrics(left.run) if "eval_loss" in line}
    best = min(held, key=lambda step: held[step])
    print("held-out loss:", held)
    raised(left, "overfit", best)
    (remedy,) = ended.remedies()
    assert remedy["remedy"] == "stop"
    assert remedy["step"] < 40
    assert ended.held_loss() == pytest.approx(held[best], rel=1e-6)
