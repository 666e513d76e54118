from __future__ import annotations

import math
from typing import Any

import pytest

from tuneloop.base import language
from tuneloop.monitor.notices import counted, notice_of, notices, still_on, sum_up

EXPLODING: dict[str, Any] = {
    "time": 1.0,
    "event": "alert",
    "rule": "exploding",
    "level": "watch",
    "step": 20,
    "since": 17,
    "facts": {"norm": 12.3, "limit": 4.2},
}
WORSE = EXPLODING | {"level": "bad", "step": 23}
OVER = EXPLODING | {"level": "good", "step": 40}
MEMORY = EXPLODING | {"rule": "memory", "facts": {"used": 14.0, "total": 15.0, "share": 0.93, "place": "main memory"}}
REMEDY: dict[str, Any] = {
    "time": 2.0,
    "event": "remedy",
    "remedy": "stop",
    "step": 50,
    "resume_at": 50,
    "amendment": {},
    "facts": {"at": 50, "best": 40, "loss": 1.25},
}


def test_alerts_and_remedies_have_words_in_both_languages() -> None:
    for line in (EXPLODING, OVER, REMEDY):
        said = notice_of(line)
        assert said is not None
        english = said.words()
        language.use("zh")
        chinese = said.words()
        language.use("en")
        for one, other in ((english.what, chinese.what), (english.why, chinese.why), (english.do, chinese.do)):
            assert one
            assert one.isascii()
            assert not other.isascii()
    assert "12.3" in notices([EXPLODING])[0].words().what


@pytest.mark.parametrize(
    "line",
    [
        {"event": "alert"},
        {"event": "remedy", "remedy": "stop"},
        {"event": "finished", "step": 3},
        EXPLODING | {"level": "dreadful"},
        EXPLODING | {"facts": None},
        *(EXPLODING | {name: odd} for name in ("step", "since") for odd in ("x", None, math.inf, 1.5, True, [])),
        *(EXPLODING | {name: odd} for name in ("rule", "level") for odd in (7, None, ["a"], {})),
        *(REMEDY | {name: odd} for name in ("step", "resume_at") for odd in ("x", None, math.inf, True)),
        *(REMEDY | {"remedy": odd} for odd in (7, None, ["a"])),
        *(REMEDY | {"amendment": odd} for odd in (7, {"skip": 3}, {"slower": [1]}, {"drop": ["x"]})),
        {},
    ],
)
def test_a_line_that_is_no_notice_is_passed_over(line: dict[str, Any]) -> None:
    assert notice_of(line) is None


@pytest.mark.parametrize("time", ["x", None, math.nan, math.inf, 1e20, [], True])
def test_a_time_that_no_calendar_has_is_the_first_of_all(time: Any) -> None:
    said = notice_of(EXPLODING | {"time": time})
    assert said is not None
    assert said.time in (0.0, 1.0)


def test_a_notice_of_another_version_is_called_by_its_name() -> None:
    later = notice_of(REMEDY | {"remedy": "later", "facts": {}})
    assert later is not None
    assert later.words().what == "later"
    assert [n.words().what for n in notices([EXPLODING | {"rule": "later"}])] == ["later"]


def test_a_rule_is_on_until_it_is_over_and_the_worst_comes_first() -> None:
    def on(*lines: dict[str, Any]) -> list[tuple[str, str]]:
        return [(n.name, n.tone) for n in still_on(notices(lines))]

    assert on(EXPLODING, MEMORY, WORSE, REMEDY) == [("exploding", "bad"), ("memory", "watch")]
    assert on(EXPLODING, WORSE, OVER) == []
    assert on(OVER, EXPLODING | {"step": 60}) == [("exploding", "watch")]


def test_what_a_remedy_has_gone_back_to_before_is_over() -> None:
    back = REMEDY | {"remedy": "spike", "step": 23, "resume_at": 15}
    assert still_on(notices([EXPLODING, WORSE, back])) == []
    again = notices([EXPLODING, WORSE, back, WORSE | {"time": 9.0}])
    assert [(n.name, n.time) for n in still_on(again)] == [("exploding", 9.0)]
    assert len(still_on(notices([EXPLODING, REMEDY]))) == 1, "a run that ends early keeps what it ended for"


def test_an_alert_before_what_a_remedy_has_gone_back_to_stands_as_it_did() -> None:
    failed = MEMORY | {"level": "bad", "step": 30, "since": 30, "facts": {"failed": True, "step": 30}}
    back = REMEDY | {"remedy": "memory", "step": 30, "resume_at": 29}
    assert still_on(notices([failed, back])) == []
    assert [(n.name, n.tone) for n in still_on(notices([MEMORY, failed, back]))] == [("memory", "watch")]
    over = MEMORY | {"level": "good", "step": 35}
    assert still_on(notices([MEMORY, failed, back, over])) == []


def test_each_remedy_of_one_step_counts() -> None:
    halved = [REMEDY | {"remedy": "memory", "amendment": {"micro_batch_size": n}} for n in (4, 2, 1)]
    assert counted(notices(halved)) == (0, 0, 3)


def test_what_a_resumed_run_notices_again_counts_once() -> None:
    lines = [EXPLODING, WORSE, REMEDY, EXPLODING | {"time": 9.0}, OVER]
    assert counted(notices(lines)) == (2, 1, 1)
    assert sum_up(lines) == "Alerts: 2 (bad: 1), remedies: 1."
    assert sum_up([OVER, {"event": "finished", "step": 3}]) == ""
