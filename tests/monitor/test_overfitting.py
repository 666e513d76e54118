from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.monitor.lines import falling, line, serious
from tuneloop.monitor.alerts import Alert, words
from tuneloop.monitor.history import History, RowLosses, RunLimits
from tuneloop.monitor.overfitting import paired_error
from tuneloop.monitor.standing import Standings
from tuneloop.recipe.watch import RulesPart


def measured(
    held: Callable[[int], float],
    *,
    rows: int = 100,
    steps: int = 120,
    every: int = 10,
    trained: Callable[[int], float] = falling,
    paired: bool = True,
    total: int | None = None,
) -> list[Alert]:
    """The alerts of a run that measures `held(step)`: rows differ by 1 among themselves, and by 0.05 from then to then."""
    draw = random.Random(3)
    hardness = [draw.gauss(0, 1) for _ in range(rows)]
    standings = Standings(RulesPart(), History(RunLimits(total or steps)))
    given: list[Alert] = []
    for step in range(1, steps + 1):
        given += standings.add(line(step, trained(step) * math.exp(draw.gauss(0, 0.05))))
        if step % every == 0:
            losses = [held(step) + hard + draw.gauss(0, 0.05) for hard in hardness]
            mean = sum(losses) / rows
            error = math.sqrt(sum((one - mean) ** 2 for one in losses) / (rows - 1) / rows)
            if paired:
                standings.history.add_rows({"step": step, "losses": losses, "weights": [1.0] * rows})
            given += standings.add({"step": step, "eval_loss": mean, "eval_error": error, "eval_rows": rows})
    return given


def rising(step: int) -> float:
    """Falls to step 40, then rises by 0.05 every ten steps."""
    return 3 - 0.02 * min(step, 40) + 0.005 * max(0, step - 40)


def test_overfitting_is_found_by_the_paired_rows_two_measurements_after_it_began() -> None:
    given = measured(rising)
    assert serious(given) == [("overfit", "watch"), ("overfit", "bad")]
    assert (given[0].step, given[0].since, given[0].facts["best_step"], given[0].facts["rows"]) == (60, 50, 40, 100)
    assert 0 < given[0].facts["interval"] < 0.05


def test_without_the_rows_the_interval_is_that_of_two_means_and_needs_a_larger_rise() -> None:
    assert serious(measured(rising, paired=False)) == []
    assert serious(measured(lambda k: rising(k) + 0.05 * max(0, k - 40), paired=False))[:1] == [("overfit", "watch")]


@pytest.mark.parametrize("rows", [4, 19])
def test_few_rows_are_a_note_at_most(rows: int) -> None:
    assert {(one.rule, one.level) for one in measured(rising, rows=rows)} == {("overfit", "note")}


def test_a_held_out_loss_that_falls_or_wavers_is_no_overfitting() -> None:
    assert serious(measured(lambda k: 3 - 0.01 * k)) == []
    assert serious(measured(lambda k: 2.2 + 0.005 * math.sin(k))) == []
    assert serious(measured(lambda k: rising(k) if k != 60 else 2.9)) != []
    assert serious(measured(lambda k: 2.2 + 0.3 * (k == 60))) == []


def test_a_loss_that_rises_on_both_sides_is_no_overfitting() -> None:
    given = measured(rising, trained=lambda k: falling(k) + max(0, k - 40) * 0.05)
    assert {rule for rule, _ in serious(given)} == {"rebound"}


def test_a_held_out_loss_that_rises_while_nothing_is_learned_is_a_rebound() -> None:
    def trained(step: int) -> float:
        return 2.15 if step > 40 else 2.0

    given = measured(rising, trained=trained)
    assert serious(given) == [("rebound", "watch")]
    assert (given[0].step, given[0].since, given[0].facts["low_step"]) == (60, 50, 40)
    assert words(given[0]).what.startswith("on the held-out rows: the loss rises again: 2.1")
    assert serious(measured(rising, trained=trained, rows=19)) == []


def level_off(step: int) -> float:
    return 3 - 0.02 * min(step, 60)


def test_a_plateau_needs_the_held_out_loss_flat_for_long_with_steps_left() -> None:
    given = measured(level_off, steps=160, total=400)
    assert serious(given) == [("plateau", "watch")]
    assert given[0].facts["steps"] == 50
    assert serious(measured(level_off, steps=135, total=135)) == []
    assert serious(measured(level_off, steps=160, total=400, rows=10)) == []
    assert serious(measured(lambda k: 3 - 0.02 * k, steps=120, total=400)) == []


def test_the_error_of_a_difference_is_that_of_the_rows_and_of_their_weights() -> None:
    before, after = RowLosses(1, [1.0, 2.0, 4.0], [1, 1, 2]), RowLosses(2, [1.5, 2.0, 4.5], [1, 1, 2])
    mean = (0.5 + 0 + 2 * 0.5) / 4
    squares = (0.5 - mean) ** 2 + mean**2 + (2 * (0.5 - mean)) ** 2
    assert paired_error(before, after) == pytest.approx(math.sqrt(squares * 3 / 2) / 4)


@pytest.mark.parametrize(
    "after",
    [
        RowLosses(2, [1.0, 2.0], [1, 1]), RowLosses(2, [1.0, 2.0, 3.0], [1, 1, 2]),
        RowLosses(2, [1.0, math.nan, 3.0], [1, 1, 1]),
    ],
)  # fmt: skip
def test_other_rows_have_no_paired_error(after: RowLosses) -> None:
    assert math.isnan(paired_error(RowLosses(1, [1.0, 2.0, 3.0], [1, 1, 1]), after))


def test_a_measurement_that_is_no_number_is_bad_and_no_best() -> None:
    standings = Standings(RulesPart())
    lines: list[dict[str, Any]] = [line(1), {"step": 1, "eval_loss": math.nan}, line(2), {"step": 2, "eval_loss": 2.0}]
    given = [alert for one in lines for alert in standings.add(one)]
    assert [(one.rule, one.level, one.facts) for one in given] == [("nan", "bad", {"name": "eval_loss"})]
    assert standings.history.best is not None
    assert standings.history.best.step == 2
