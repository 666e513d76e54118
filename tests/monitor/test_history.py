from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.monitor.lines import course, falling, line
from tuneloop.monitor.history import BLOCK, LEVEL, WINDOW, History, RowLosses, spread

NUMBERS = st.floats(-1e6, 1e6)


def history(lines: Sequence[Mapping[str, Any]]) -> History:
    one = History()
    for fields in lines:
        one.add(fields)
    return one


def test_the_level_is_the_median_of_the_last_losses() -> None:
    one = history([line(k, loss) for k, loss in enumerate([9.0, 3.0, 1.0, 2.0, 50.0, 4.0, 5.0, 6.0, 7.0], 1)])
    assert one.level == median([3.0, 1.0, 2.0, 50.0, 4.0, 5.0, 6.0, 7.0])
    assert (one.start, one.first_step, one.count, one.step) == (9.0, 1, 9, 9)


def test_the_lowest_level_and_when_it_was() -> None:
    one = history([line(k, loss) for k, loss in enumerate([5.0] * 20 + [2.0] * 20 + [6.0] * 20, 1)])
    assert one.low == 2.0
    assert 20 < one.low_step < 40
    assert one.first == 5.0


@pytest.mark.parametrize("raw", [None, "NaN", math.nan, math.inf, True])
def test_what_is_no_number_counts_in_no_median(raw: object) -> None:
    lines = [line(k, 2.0) for k in range(1, 30)]
    lines[10]["loss"] = lines[12]["grad_norm"] = raw
    one = history(lines)
    assert (one.level, one.low) == (2.0, 2.0)
    assert one.usual("exploding", lambda block: block.norm) == [1.0, 1.0]


def test_other_lines_change_nothing() -> None:
    one = history([{"step": 3}, {"event": "checkpoint", "step": 4}, {}])
    assert (one.count, one.step, math.isnan(one.level)) == (0, 0, True)


def test_held_out_lines_have_their_interval_and_their_rows() -> None:
    one = History()
    for step, loss in ((10, 2.0), (20, 1.5), (30, 1.8)):
        one.add_rows({"step": step, "losses": [loss - 0.1, loss + 0.1], "weights": [1.0, 1.0]})
        one.add({"step": step, "eval_loss": loss, "eval_error": 0.1, "eval_rows": 2})
    one.add({"step": 40, "eval_loss": 1.9})
    assert one.best is not None
    assert (one.best.step, one.best.error, one.best.rows) == (20, 0.1, 2)
    assert one.best_rows == RowLosses(20, [1.4, 1.6], [1.0, 1.0])
    assert one.rows_after(30) is not None
    assert one.rows_after(40) is None
    assert (one.measurements[-1].error, one.measurements[-1].rows) == (None, None)


def test_the_best_rows_stay_however_long_ago_they_were() -> None:
    one = History()
    for step in range(1, 40):
        one.add_rows({"step": step, "losses": [float(step)] * 3, "weights": [1.0] * 3})
        one.add({"step": step, "eval_loss": float(step)})
    assert one.rows_after(1) == RowLosses(1, [1.0] * 3, [1.0] * 3)
    assert one.rows_after(5) is None


def test_noise_is_that_of_neighbours_and_not_of_the_fall() -> None:
    assert history(course(WINDOW, lambda k: 10.0 - 0.1 * k, noise=0.0)).noise() == pytest.approx(0.0, abs=1e-9)
    assert history(course(WINDOW, lambda k: 2.0, noise=0.1)).noise() == pytest.approx(0.2, rel=0.5)
    assert math.isnan(history(course(BLOCK - 1, falling)).noise())


def test_what_is_usual_lies_before_now_and_before_a_rule_began_to_hold() -> None:
    one = history([line(k, grad_norm=1.0 if k <= 20 else 9.0) for k in range(1, 41)])
    assert one.usual("exploding", lambda block: block.norm) == [1.0, 1.0, 9.0]
    one.since["exploding"] = 21
    assert one.usual("exploding", lambda block: block.norm) == [1.0, 1.0]
    assert history([line(k) for k in range(1, BLOCK + 1)]).usual("exploding", lambda block: block.norm) == []


@given(st.lists(NUMBERS, min_size=1, max_size=80))
def test_a_third_of_wild_numbers_moves_no_spread_beyond_that_of_the_others(numbers: list[float]) -> None:
    wild = [*numbers, *[1e12] * ((len(numbers) - 1) // 3)]
    assert spread(wild) <= 1.4826 * (max(numbers) - min(numbers)) + 1e-6


@given(st.lists(st.tuples(NUMBERS, NUMBERS, st.booleans()), max_size=120), st.integers(0, 120))
def test_a_history_is_a_function_of_its_lines(numbers: list[tuple[float, float, bool]], cut: int) -> None:
    lines = [
        {"step": k, "eval_loss": a} if held else line(k, a, grad_norm=b) for k, (a, b, held) in enumerate(numbers, 1)
    ]
    whole, again = history(lines), history([json.loads(json.dumps(one)) for one in lines[:cut]])
    for fields in lines[cut:]:
        again.add(fields)
    assert repr(whole) == repr(again)
    assert len(whole.points) <= WINDOW
    assert whole.count < LEVEL or whole.low <= whole.level or math.isnan(whole.level)
