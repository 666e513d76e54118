from __future__ import annotations

import json
import re
import string
from typing import Any

import pytest

from tests.monitor.lines import alerts, course, falling, line
from tuneloop.base import language
from tuneloop.base.errors import catalogue
from tuneloop.monitor.alerts import LEVELS, Alert, level_word, shown, words
from tuneloop.monitor.history import History, RunLimits
from tuneloop.monitor.standing import CALM, Standings
from tuneloop.recipe.watch import RulesPart

FACTS: dict[str, dict[str, Any]] = {
    "rebound": {"loss": 2.5, "low": 2.0, "low_step": 40, "share": 0.25},
    "exploding": {"norm": 30.0, "limit": 5.0},
    "vanishing": {"norm": 0.0, "limit": 0.1},
    "nan": {"name": "loss"},
    "plateau": {"loss": 2.0, "steps": 60},
    "overfit": {"loss": 2.2, "best": 2.0, "best_step": 40, "interval": 0.05, "rows": 100},
    "throughput": {"speed": 100.0, "usual": 1000.0, "times": 10.0},
    "memory": {"used": 15.0, "total": 16.0, "share": 0.9375, "place": "CPU"},
    "disk": {"free": 0.5, "needed": 1.0},
    "rate": {"left": 60},
    "labels": {"rows": 12, "of": 900, "places": "a.csv:3", "list": "suspicious_rows.jsonl"},
}


@pytest.mark.parametrize("tongue", language.LANGUAGES)
@pytest.mark.parametrize("rule", RulesPart.model_fields)
def test_an_alert_says_what_why_and_what_to_try(rule: str, tongue: str) -> None:
    language.use(tongue)
    text = words(Alert(rule, "watch", 50, 45, FACTS[rule]))
    for part in (text.what, text.why, text.do):
        assert part
        assert not re.search(r"[{}?？]", part), part
        assert bool(re.search(r"[\u4e00-\u9fff]", part)) == (tongue == "zh")


@pytest.mark.parametrize("rule", RulesPart.model_fields)
def test_the_words_take_no_other_facts_than_the_rule_gives(rule: str) -> None:
    entry = catalogue("watch", "en")[f"TL-WATCH-{rule.upper()}"]
    for part in ("what", "why", "do"):
        assert {name for _, name, _, _ in string.Formatter().parse(entry[part]) if name} <= FACTS[rule].keys()


def test_an_alert_is_a_line_of_events_and_comes_back() -> None:
    alert = Alert("rebound", "bad", 50, 45, FACTS["rebound"])
    event = json.loads(json.dumps({"time": 1.0, "event": "alert", **alert.as_event()}))
    assert Alert.of(event) == alert
    assert set(event) == {"time", "event", "rule", "level", "step", "since", "facts"}
    assert alert.code == "TL-WATCH-REBOUND"


def test_facts_that_are_missing_hide_nothing() -> None:
    text = words(Alert("overfit", "bad", 50, 45, {"loss": None}))
    assert text.what.startswith("the held-out loss rises while training's falls: ?")
    assert words(Alert("other", "bad", 1, 1, {})).what == ""


def test_what_is_shown_is_one_line_and_what_to_do() -> None:
    alert = Alert("rate", "bad", 50, 45, FACTS["rate"])
    head, do = shown(alert)
    assert head == ("✗ bad, step 50: the learning rate is zero, and steps are left: 60 (since step 45, TL-WATCH-RATE)")
    assert do == f"   -> {words(alert).do}"
    language.use("zh")
    assert shown(alert)[0] == "✗ 严重，第 50 步：学习率为零，而剩余步数还有：60（自第 45 步起，TL-WATCH-RATE）"
    assert [level_word(level) for level in LEVELS] == ["良好", "提示", "注意", "严重"]
    language.use("en")
    assert shown(Alert("rate", "good", 50, 45, FACTS["rate"])) == [
        "✓ good, step 50: over: the learning rate is zero, and steps are left: 60 (since step 45, TL-WATCH-RATE)"
    ]


# When an alert is given.


def test_an_alert_comes_once_worsens_once_and_ends_once() -> None:
    share = {**dict.fromkeys(range(10, 60), 0.92), 30: 0.96, 31: 0.96, 40: 0.97, 41: 0.97, 45: 0.5, 47: 0.5}
    lines = course(80, falling, memory_total_gb=lambda k: 10.0, memory_free_gb=lambda k: 10 - 10 * share.get(k, 0.5))
    given = alerts(lines)
    assert [(one.level, one.step, one.since) for one in given] == [
        ("watch", 11, 10), ("bad", 31, 10), ("good", 59 + CALM, 10)
    ]  # fmt: skip


def test_what_a_run_tells_does_not_depend_on_where_it_was_taken_up() -> None:
    lines = course(
        100, lambda k: falling(k) + 3 * (k > 50), grad_norm=lambda k: 9.0 if k > 70 else 1.0,
        seconds=lambda k: 6.0 if 40 < k < 60 else 0.5,
    )  # fmt: skip
    whole = alerts(lines)
    assert {one.rule for one in whole} == {"rebound", "exploding", "throughput"}
    for cut in (20, 55, 73):
        again = Standings(RulesPart())
        before = [alert for one in lines[:cut] for alert in again.add(one)]
        assert before + [alert for one in lines[cut:] for alert in again.add(json.loads(json.dumps(one)))] == whole


def test_facts_are_what_json_has_everywhere() -> None:
    lines = [line(k, grad_norm=1e300 * 1e300 if k == 9 else 1.0, loss=float(k)) for k in range(1, 40)]
    standings = Standings(RulesPart(), History(RunLimits(total=100)))
    for one in lines:
        for alert in standings.add(one):
            json.dumps(alert.as_event(), allow_nan=False)
