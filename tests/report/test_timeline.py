from __future__ import annotations

from typing import Any

import pytest

from tests.monitor.test_notices import EXPLODING, OVER, REMEDY, WORSE
from tuneloop.base import language
from tuneloop.report.timeline import opened, summary, timeline

STARTED: dict[str, Any] = {"time": 1.0, "event": "started", "step": 0, "total": 60}


def same(text: str) -> str:
    return text


def test_an_alert_stands_with_since_when_why_and_what_to_do() -> None:
    began, alert, over, mended = timeline([STARTED, WORSE, OVER, REMEDY], same)
    assert (began.tone, began.event) == ("", "training began")
    assert "60" in began.details
    assert (alert.tone, alert.event) == ("bad", "✗ bad")
    assert alert.details.startswith("step 23 (since 17): the gradient explodes: its norm is 12.3")
    assert alert.why
    assert "train.learning_rate" in alert.do
    assert (over.event, over.why, over.do) == ("✓ good", "", "")
    assert over.details.startswith("step 40 (since 17): over: the gradient explodes")
    assert mended.event == "↻ remedied"
    assert mended.details.startswith("The run ended after step 50")


@pytest.mark.parametrize(
    ("event", "english", "chinese"),
    [
        ("paused", "training paused: the disk is full", "训练暂停：磁盘已满"),
        ("failed", "training ended with an error", "训练出错终止"),
        ("killed", "the system ended training for want of memory", "系统因内存不足终止了训练"),
    ],
)
def test_an_end_has_words_in_both_languages(event: str, english: str, chinese: str) -> None:
    line = {"time": 1.0, "event": event, "code": "TL-RUN-NAN"}
    (row,) = timeline([line], same)
    assert row.event == english
    assert "TL-RUN-NAN" in row.details
    language.use("zh")
    assert timeline([line], same)[0].event == chinese


def test_what_is_private_leaves_all_parts() -> None:
    rows = timeline([STARTED, EXPLODING], lambda text: f"<{text}>")
    for part in (rows[0].details, rows[1].why, rows[1].do, rows[1].details.removeprefix("step 20 (since 17): ")):
        assert part.startswith("<")
        assert part.endswith(">")


@pytest.mark.parametrize(
    ("lines", "is_open", "text"),
    [
        ([STARTED], False, ""),
        ([STARTED, EXPLODING | {"level": "note"}], False, ""),
        ([EXPLODING, OVER], True, ""),
        (
            [EXPLODING, WORSE, REMEDY],
            True,
            "Bad alerts while it trained: 1. Times that it mended itself and went on: 1.",
        ),
    ],
)
def test_only_what_matters_opens_the_time_line_and_stands_on_top(
    lines: list[dict[str, Any]], is_open: bool, text: str
) -> None:
    assert (opened(lines), summary(lines)) == (is_open, text)
