from __future__ import annotations

import pytest

from tests.evaluations import evaluation
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.gate import SLACK, better


def measured(loss: float | None, *passed: bool) -> Evaluation:
    return evaluation(3.0, loss, *passed)


@pytest.mark.parametrize(
    ("old", "new", "holds"),
    [
        (2.0, 1.9, True),
        (2.0, 2.0, True),
        (2.0, 2.0 * (1 + SLACK) - 1e-6, True),
        (2.0, 2.0 * (1 + SLACK) + 1e-6, False),
        (2.0, 3.0, False),
        (2.0, float("nan"), False),
        (2.0, float("inf"), False),
        (2.0, None, False),
        (None, 2.0, False),
        (None, None, False),
    ],
)
def test_the_held_out_loss_must_hold(old: float | None, new: float | None, holds: bool) -> None:
    assert better(measured(old), measured(new)).better is holds


def test_a_failed_probe_shuts_the_gate_whatever_the_loss() -> None:
    verdict = better(measured(2.0, False), measured(1.0, True, False, False))
    assert not verdict.better
    assert verdict.failed == ("p1", "p2")
    assert (verdict.old_loss, verdict.new_loss) == (2.0, 1.0)
    assert better(measured(2.0, False, False), measured(1.0, True, True)).better, "what failed before does not count"


def test_without_a_loss_the_probes_decide() -> None:
    assert better(measured(None, True), measured(None, True)).better
    assert not better(measured(None, True), measured(None, False)).better


def test_without_probes_the_loss_decides() -> None:
    assert better(measured(2.0), measured(1.0)).better
