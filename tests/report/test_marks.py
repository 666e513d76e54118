from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

from tests.monitor.test_notices import EXPLODING, OVER, REMEDY, WORSE
from tuneloop.report.marks import curve_marks, drawn, legend


def parsed(events: list[dict[str, Any]]) -> list[ElementTree.Element]:
    """The marks where a step is two units wide."""
    return [ElementTree.fromstring(one) for one in drawn(curve_marks(events), lambda step: 2.0 * step, 14, 250)]


def test_each_alert_and_remedy_is_a_mark_and_what_is_over_is_none() -> None:
    assert [(m.step, m.tone) for m in curve_marks([EXPLODING, WORSE, OVER, REMEDY])] == [
        (20, "watch"),
        (23, "bad"),
        (50, "remedy"),
    ]
    assert legend([REMEDY, EXPLODING, OVER]) == [("watch", "!", "watch"), ("remedy", "↻", "remedied")]


def test_a_mark_stands_at_its_step_and_says_it_in_both_languages() -> None:
    (mark,) = parsed([EXPLODING])
    title, line, sign = mark
    assert mark.get("class") == "mark watch"
    assert line.get("d") == "M40.0 14.0V250.0"
    assert (sign.get("x"), sign.text) == ("40.0", "!")
    assert "the gradient explodes" in str(title.text)
    assert "梯度爆炸" in str(title.text)


def test_marks_side_by_side_are_one_with_the_words_of_all() -> None:
    near, far = parsed([REMEDY, EXPLODING, WORSE])
    assert near.get("class") == "mark bad"
    assert str(near[0].text).count("\n") == 1
    assert far.get("class") == "mark remedy"


def test_words_are_escaped() -> None:
    nan = EXPLODING | {"rule": "nan", "facts": {"name": "<b>&"}}
    assert "<b>&" in str(parsed([nan])[0][0].text)
