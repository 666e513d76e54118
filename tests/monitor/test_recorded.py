"""The rules on what real runs were: the healthy ones are left in peace, in the faulty ones the fault is seen in time.

The records are our own runs of SmolLM2 and MiniLM; tests/e2e/test_watch_healthy.py and test_watch_alerts.py make them
anew with TUNELOOP_TEST_RECORD=tests/monitor/recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from tuneloop.monitor.alerts import Alert
from tuneloop.monitor.history import History, RunLimits
from tuneloop.monitor.standing import Standings
from tuneloop.recipe.watch import RulesPart

RECORDED = Path(__file__).with_name("recorded")
EFFECT = 25
FAULTS = {
    "rate": ({"rate"}, EFFECT),
    "vanishing": ({"vanishing"}, EFFECT),
    "throughput": ({"throughput"}, EFFECT),
    "thousandfold": ({"rebound", "exploding", "nan"}, 1),
    "overfit": ({"overfit"}, None),
}
"""Kind of fault -> the rules of which one must see it, and its first step; of overfitting that of the best state."""


def files(kind: str) -> list[Path]:
    return sorted(RECORDED.glob(f"{kind}-*.jsonl"))


def replayed(file: Path) -> tuple[list[Alert], dict[int, float]]:
    """The alerts above a note that the rules give on a recorded run, and its held-out losses by step."""
    head, *lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    standings = Standings(RulesPart(), History(RunLimits(head["total"], chance=head["chance"])))
    alerts: list[Alert] = []
    for line in lines:
        if "losses" in line:
            standings.history.add_rows(line)
        else:
            alerts += standings.add(line)
    held = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    return [alert for alert in alerts if alert.level in ("watch", "bad")], held


def names(paths: Iterable[Path]) -> list[str]:
    return [path.stem for path in paths]


def test_all_fifteen_healthy_runs_are_recorded() -> None:
    kinds = ("persona", "strategyqa", "smilechat", "full", "freeze")
    assert set(names(files("healthy"))) == {f"healthy-{kind}-{seed}" for kind in kinds for seed in (1, 2, 3)}


@pytest.mark.parametrize("file", files("healthy"), ids=lambda path: path.stem)
def test_a_healthy_run_raises_nothing_above_a_note(file: Path) -> None:
    alerts, held = replayed(file)
    assert len(held) >= 4
    assert not alerts


@pytest.mark.parametrize("file", files("faulty"), ids=lambda path: path.stem)
def test_a_fault_is_seen_within_twenty_steps(file: Path) -> None:
    alerts, held = replayed(file)
    rules, effect = FAULTS[file.stem.split("-")[1]]
    first = min(held, key=lambda step: held[step]) if effect is None else effect
    seen = [alert.step for alert in alerts if alert.rule in rules]
    assert seen, [(alert.rule, alert.step) for alert in alerts]
    assert first <= min(seen) <= first + 20
