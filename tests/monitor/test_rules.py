from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.monitor.lines import alerts, cosine, course, falling, line, serious
from tuneloop.monitor.alerts import Alert
from tuneloop.monitor.history import RunLimits
from tuneloop.monitor.rules import RULES
from tuneloop.recipe.watch import RulesPart


def first(given: list[Alert], rule: str) -> Alert:
    """The first alert of a rule that is more than a note."""
    return next(one for one in given if one.rule == rule and one.level in {"watch", "bad"})


def test_every_rule_of_the_recipe_is_there_but_that_of_single_rows() -> None:
    assert set(RULES) == set(RulesPart.model_fields) - {"labels"}


# What is well stays quiet.

HEALTHY: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "lora of 40 noisy steps": lambda seed: course(
        40, lambda k: 3.4 - 0.01 * k, noise=0.12, seed=seed, learning_rate=cosine(40)
    ),
    "few rows over and over": lambda seed: course(
        200, lambda k: 2 * math.exp(-(k // 5) / 6) + 0.05, noise=0.3, seed=seed, learning_rate=cosine(200)
    ),
    "a classifier that falls from 0.69": lambda seed: course(
        120, lambda k: 0.1 + 0.59 / (1 + math.exp((k - 30) / 6)), noise=0.3, seed=seed,
        grad_norm=lambda k: 8 / (1 + k / 5), learning_rate=cosine(120),
    ),
    "all weights with large gradients": lambda seed: course(
        200, falling, seed=seed, grad_norm=lambda k: 35 + 10 * math.sin(k), learning_rate=cosine(200)
    ),
    "virtual tokens with small gradients": lambda seed: course(
        200, falling, seed=seed, grad_norm=lambda k: 0.02 + 0.01 * math.sin(k), learning_rate=cosine(200)
    ),
    "preferences": lambda seed: course(
        100, lambda k: 0.35 + 0.343 * math.exp(-k / 25), noise=0.15, seed=seed, learning_rate=cosine(100)
    ),
    "the flat end of a cosine": lambda seed: course(
        300, lambda k: 1 + math.exp(-k / 10), noise=0.02, seed=seed, learning_rate=cosine(300)
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_is_left_in_peace(name: str, seed: int) -> None:
    lines = HEALTHY[name](seed)
    assert serious(alerts(lines, RunLimits(total=len(lines)))) == []


def test_a_single_hard_batch_is_no_alert() -> None:
    lines = course(80, falling, grad_norm=lambda k: 60.0 if k == 50 else 1.0, learning_rate=cosine(80))
    lines[49]["loss"] = 12.0
    assert serious(alerts(lines, RunLimits(total=80))) == []


# What is planted is found within 20 steps, and what it does not concern stays quiet.


def spoiled(name: str) -> tuple[list[dict[str, Any]], RunLimits, str, int]:
    """Lines of 120 steps, what is known of the run, the rule that must find it and the step of its effect."""
    at, limits = 60, RunLimits(total=120, checkpoint_gb=0.5)
    rate = cosine(120)
    planted: dict[str, tuple[str, list[dict[str, Any]]]] = {
        "the rate times a thousand": ("rebound", course(120, lambda k: falling(k) + (6.0 if k >= at else 0))),
        "a slow rise": ("rebound", course(120, lambda k: falling(k) + max(0, k - at) * 0.06)),
        "a gradient that grows": (
            "exploding", course(120, falling, grad_norm=lambda k: 1.3 ** max(0, k - at), learning_rate=rate)
        ),
        "a gradient of nothing": (
            "vanishing", course(120, lambda k: 2.0, grad_norm=lambda k: 0.0 if k >= at else 1.0, learning_rate=rate)
        ),
        "a faint gradient": (
            "vanishing", course(120, lambda k: 2.0, grad_norm=lambda k: 1e-6 if k >= at else 1.0, learning_rate=rate)
        ),
        "a rate of zero": (
            "rate", course(120, falling, learning_rate=lambda k: 0.0 if k >= at else rate(k))
        ),
        "a slow reader": ("throughput", course(120, falling, seconds=lambda k: 5.0 if k >= at else 0.5)),
        "a memory that fills": (
            "memory",
            course(
                120, falling, memory_total_gb=lambda k: 16.0, memory_free_gb=lambda k: 16 - 8 - max(0, k - 40) * 0.35
            ),
        ),
        "a card that fills": (
            "memory", course(120, falling, device_total_gb=lambda k: 24.0, device_gb=lambda k: 23.5 if k >= at else 9.0)
        ),
        "a disk that fills": ("disk", course(120, falling, disk_free_gb=lambda k: 0.4 if k >= at else 50.0)),
    }  # fmt: skip
    rule, lines = planted[name]
    return lines, limits, rule, at


@pytest.mark.parametrize(
    "name",
    [
        "the rate times a thousand", "a slow rise", "a gradient that grows", "a gradient of nothing",
        "a faint gradient", "a rate of zero", "a slow reader", "a memory that fills", "a card that fills",
        "a disk that fills",
    ],
)  # fmt: skip
def test_a_planted_fault_is_found_within_twenty_steps(name: str) -> None:
    lines, limits, rule, at = spoiled(name)
    given = alerts(lines, limits)
    assert {one for one, _ in serious(given)} == {rule}
    assert at - 3 <= first(given, rule).step <= at + 20
    assert at - 10 <= first(given, rule).since <= at + 20


@pytest.mark.parametrize("kind", ["loss", "grad_norm"])
@pytest.mark.parametrize("raw", [math.nan, math.inf, None, "NaN"])
def test_what_is_no_number_is_found_at_once(kind: str, raw: Any) -> None:
    lines = course(30, falling)
    lines[19][kind] = raw
    (alert, over) = [one for one in alerts(lines) if one.rule == "nan"]
    assert (alert.level, alert.step, alert.facts) == ("bad", 20, {"name": kind})
    assert (over.level, over.step) == ("good", 25)


def test_a_run_that_is_sick_from_the_start_is_found_though_it_does_not_know_itself() -> None:
    lines = course(40, lambda k: 3.4 if k < 3 else 11.0, learning_rate=cosine(40, rate=0.2))
    found = first(alerts(lines, RunLimits(total=40)), "rebound")
    assert found.level == "bad"
    assert found.step <= 22
    assert found.facts["low"] == pytest.approx(3.4, rel=0.3)


@pytest.mark.parametrize(
    "losses",
    [
        [2.9, 2.9, 3.1, 4.2, 7.0, 13.0, 21.0, 21.5, 20.8, 21.0], [6.2, 11.0, 30.0, *[66.0 + k % 3 for k in range(15)]],
        [0.69, 0.68, *[3.0 + k % 2 / 10 for k in range(18)]],
    ],
)  # fmt: skip
def test_a_loss_that_runs_away_at_once_is_bad(losses: list[float]) -> None:
    given = [one for one in alerts([line(k, one) for k, one in enumerate(losses, 1)]) if one.level == "bad"]
    assert [one.rule for one in given] == ["rebound"]
    assert given[0].step <= 20
    assert given[0].since <= 5


VOCABULARY = math.log(49_152)


def test_a_model_that_becomes_worse_than_a_guess_is_bad_however_wild_the_loss_is() -> None:
    """It has run away within the three lines that others are measured by, and comes down again to below a guess."""
    losses = [2.9, 5.4, 22.0, 59.0, 35.5, 28.2, 59.8, 21.7, 30.9, 21.6, 17.6, 15.1, 14.3, 16.2, *[11.7, 9.5, 10.4] * 9]
    lines = [line(step, loss) for step, loss in enumerate(losses, 1)]
    given = alerts(lines, RunLimits(total=41, chance=VOCABULARY))
    assert [one.level for one in given if one.rule == "rebound"] == ["bad"], "and it is not over while it is far worse"
    found = first(given, "rebound")
    assert (found.level, found.step, found.since) == ("bad", 5, 3)
    assert (found.facts["low"], found.facts["low_step"]) == (2.9, 1)


@pytest.mark.parametrize(
    ("losses", "chance"),
    [
        ([11.2, 11.4, 11.1, 11.3, 11.2, *[11.0 - k / 5 for k in range(30)]], VOCABULARY),  # with no weights of its own
        ([0.3, *[4.1 + k % 2 / 5 for k in range(12)]], VOCABULARY),  # an easy first batch
        ([2.0, 12.0, 11.5, *[1.9, 1.7, 12.5] * 3], VOCABULARY),  # odd batches
        ([0.69, 0.8, 0.95, 0.9, 1.0, 0.85, *[0.7 - k / 100 for k in range(30)]], math.log(2)),
    ],
)
def test_a_loss_near_that_of_a_guess_is_nothing_bad(losses: list[float], chance: float) -> None:
    lines = [line(step, loss) for step, loss in enumerate(losses, 1)]
    assert not [one for one in alerts(lines, RunLimits(chance=chance)) if one.level == "bad"]


def test_a_run_that_runs_away_late_goes_back_to_where_it_did_and_not_to_its_beginning() -> None:
    lines = course(524, lambda k: 1 + 2 * math.exp(-k / 200) if k < 500 else min(8.0, 1 + 0.7 * (k - 499)), noise=0.05)
    given = [one for one in alerts(lines) if one.rule == "rebound"]
    assert [one.level for one in given] == ["watch", "bad"]
    for one in given:
        assert 490 <= one.since <= 502 <= one.step <= 520


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["easy first", "learned before", "noisy batches"])
def test_an_easy_beginning_or_uneven_batches_are_no_rise(kind: str, seed: int) -> None:
    noisy = course(60, lambda k: 0.3 + 1.2 * math.exp(-k / 200), noise=0.8, seed=seed)
    before = course(60, lambda k: 0.05 + 0.4 * math.exp(-k / 100) if k > 1 else 0.05, noise=0.3, seed=seed)
    easy = course(60, lambda k: 1.6 * math.exp(-k / 150) if k > 1 else 0.35, noise=0.2, seed=seed)
    lines = {"easy first": easy, "learned before": before, "noisy batches": noisy}[kind]
    assert serious(alerts(lines)) == []


# The guides' numbers are those of a young run.


@pytest.mark.parametrize(
    ("norms", "level"),
    [
        ([5.0] * 8, None), ([12.0] * 8, "note"), ([30.0] * 8, "note"),
        ([1.0] * 6 + [12.0] * 4, "watch"), ([1.0] * 6 + [30.0] * 4, "bad"),
    ],
)  # fmt: skip
def test_a_young_run_goes_by_the_guides_norms(norms: list[float], level: str | None) -> None:
    lines = [line(step, grad_norm=norm) for step, norm in enumerate(norms, 1)]
    assert [one.level for one in alerts(lines) if one.rule == "exploding"][-1:] == ([level] if level else [])


def test_the_recipe_has_other_numbers() -> None:
    lines = [line(step, grad_norm=12.0) for step in range(1, 9)]
    assert not alerts(lines, exploding={"high": 15.0})
    full = course(20, falling, memory_total_gb=lambda k: 10.0, memory_free_gb=lambda k: 2.5)
    assert not alerts(full)
    assert serious(alerts(full, memory={"watch": 0.7})) == [("memory", "watch")]


def test_a_rule_that_is_switched_off_is_silent() -> None:
    lines, limits, rule, _ = spoiled("a slow reader")
    assert alerts(lines, limits, **{rule: {"enabled": False}}) == []


def test_small_gradients_of_what_is_learned_by_heart_are_no_fault() -> None:
    lines = course(120, lambda k: 2 * math.exp(-k / 8), grad_norm=lambda k: 2 * math.exp(-k / 8))
    assert serious(alerts(lines, RunLimits(total=120))) == []


def test_the_pace_is_that_of_the_run_itself_and_stays_what_it_was_before() -> None:
    lines = course(400, falling, seconds=lambda k: 5.0 if k >= 60 else 0.5)
    assert [one.level for one in alerts(lines) if one.rule == "throughput"] == ["watch"]
    assert serious(alerts(course(100, falling, seconds=lambda k: 30.0))) == []


def test_memory_that_is_nearly_full_is_bad_and_over_when_there_is_room() -> None:
    free = {10: 0.8, 11: 0.8, 12: 0.3, 13: 0.3}
    lines = course(30, falling, memory_total_gb=lambda k: 10.0, memory_free_gb=lambda k: free.get(k, 5.0))
    assert [(one.level, one.step) for one in alerts(lines)] == [("watch", 11), ("bad", 13), ("good", 18)]


@pytest.mark.parametrize(
    ("free", "limits", "level"),
    [
        (0.9, RunLimits(), "bad"), (1.5, RunLimits(), "watch"), (2.5, RunLimits(), None),
        (0.9, RunLimits(disk_gb=10), None), (0.15, RunLimits(disk_gb=10), "bad"),
        (8.0, RunLimits(checkpoint_gb=10.0), "bad"), (15.0, RunLimits(checkpoint_gb=10.0), "watch"),
        (25.0, RunLimits(checkpoint_gb=10.0), None),
    ],
)  # fmt: skip
def test_the_disk_needs_room_for_what_comes_next(free: float, limits: RunLimits, level: str | None) -> None:
    given = alerts([line(1, disk_free_gb=free)], limits)
    assert [one.level for one in given] == ([level] if level else [])


def test_a_rate_of_zero_at_the_end_or_where_the_end_is_not_known_is_no_fault() -> None:
    lines = course(40, falling, learning_rate=lambda k: 0.0 if k in {1, 39, 40} else 1e-4)
    assert serious(alerts(lines[:38], RunLimits(total=80))) == []
    assert serious(alerts(lines, RunLimits(total=40))) == []
    assert serious(alerts(lines, RunLimits())) == []
    assert serious(alerts(lines, RunLimits(total=80))) == [("rate", "bad")]


def test_a_flat_training_loss_is_a_note_and_only_while_rate_and_steps_are_left() -> None:
    flat = course(200, lambda k: 1.0, noise=0.002)
    assert [one.level for one in alerts(flat, RunLimits(total=400)) if one.rule == "plateau"] == ["note"]
    assert not alerts(flat[:85], RunLimits(total=85))
    ended = [one | {"learning_rate": 1e-6 if one["step"] > 30 else 1e-4} for one in flat]
    assert not alerts(ended, RunLimits(total=400))
