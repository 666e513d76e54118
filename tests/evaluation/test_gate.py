from __future__ import annotations

from typing import Any

import pytest

from tuneloop.evaluation.gate import SLACK, better


def evaluation(loss: float | None, *probes: bool) -> dict[str, Any]:
    return {
        "after": {"loss": loss},
        "probes": [{"name": f"probe {n}", "passed": passed} for n, passed in enumerate(probes)],
    }


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
    assert better(evaluation(old), evaluation(new)).better is holds


def test_a_failed_probe_shuts_the_gate_whatever_the_loss() -> None:
    verdict = better(evaluation(2.0, False), evaluation(1.0, True, False, False))
    assert not verdict.better
    assert verdict.failed == ("probe 1", "probe 2")
    assert (verdict.old_loss, verdict.new_loss) == (2.0, 1.0)
    assert better(evaluation(2.0, False, False), evaluation(1.0, True, True)).better, (
        "what failed before does not count"
    )


def test_without_probes_the_loss_decides() -> None:
    assert better({"after": {"loss": 2.0}}, {"after": {"loss": 1.0}}).better
