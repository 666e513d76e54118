"""Probes and reports look at how an answer ends: what repeats itself or was cut off is no success."""

from __future__ import annotations

from typing import Any

import pytest

from tuneloop.base.records import Reply
from tuneloop.evaluation import compare, faults
from tuneloop.evaluation.evaluation import Evaluation, Scores
from tuneloop.recipe.schema import Probe
from tuneloop.report.verdict import verdict

SOUND = ("我是小石，tuneloop 自带的助手。", "stop")
CUT = ("我是小石，tuneloop 自带的助手，我可以帮你", "length")
LOOP = ("我是小石，用 tuneloop 自带的助手 tuneloop tuneloop tuneloop", "stop")
ENDLESS = ("叫小石，小石，小石，小石，小石，小石，小石，小石", "length")
OTHER = ("水开后煮六分钟。", "stop")
OTHER_CUT = ("水开后先放醋，再把鸡蛋打进去，", "length")


def reply(text: str, finish: Any) -> Reply:
    return Reply(text, 9, 9, finish)


@pytest.mark.parametrize(
    ("bounds", "answers", "counted", "passed"),
    [
        ({"at_least": 2}, [SOUND, SOUND], 2, True),
        ({"at_least": 2}, [SOUND, CUT], 1, False),
        ({"at_least": 2}, [SOUND, LOOP], 1, False),
        ({"at_least": 1}, [CUT, ENDLESS], 0, False),
        ({}, [SOUND, LOOP], 1, True),
        # A name that nobody asked for is no better for being said again and again.
        ({"at_most": 0}, [OTHER, LOOP], 1, False),
        ({"at_most": 0}, [OTHER, ENDLESS], 1, False),
        ({"at_most": 1}, [OTHER_CUT, CUT], 1, True),
        ({"at_most": 0}, [OTHER, OTHER_CUT], 0, True),
        ({"at_least": 1, "at_most": 1}, [SOUND, LOOP], 1, False),
        ({"at_least": 1, "at_most": 1}, [SOUND, OTHER], 1, True),
    ],
)
def test_what_a_probe_counts(
    bounds: dict[str, int], answers: list[tuple[str, str]], counted: int, passed: bool
) -> None:
    probe = Probe(name="说出自己是谁", prompts=["你是谁？", "你叫什么？"], expect="小石", **bounds)
    result = compare.probe(probe, [reply(*OTHER)] * 2, [reply(*a) for a in answers])
    assert (result.before, result.after, result.passed) == (0, counted, passed)
    # Before training the same is counted.
    assert compare.probe(probe, [reply(*a) for a in answers], [reply(*OTHER)] * 2).before == counted


def shown(*answers: tuple[str, str]) -> Evaluation:
    nothing = Scores(rows=0, label_tokens=0)
    probe = Probe(name="说出自己是谁", prompts=["你是谁？"] * len(answers), expect="小石", at_least=0)
    replies = [reply(*a) for a in answers]
    return compare.assemble(
        before=nothing, after=nothing, show=["你是谁？"] * len(answers), show_before=[reply(*CUT)] * len(answers),
        show_after=replies, probes=[compare.probe(probe, replies, replies)],
    )  # fmt: skip


def test_the_first_line_says_how_many_repeat_themselves() -> None:
    bad = verdict(shown(SOUND, LOOP, CUT))
    assert bad.tone == "bad"
    assert "2 of 6 answers after training repeat themselves." in bad.text
    good = verdict(shown(SOUND, CUT))
    assert good.tone == "good"
    assert "repeat" not in good.text


def test_each_answer_says_what_is_wrong_with_it() -> None:
    found = shown(SOUND, LOOP, CUT, ENDLESS).show
    assert [a.after_fault for a in found] == ["", "repeats", "unfinished", "repeats"]
    assert {a.before_fault for a in found} == {"unfinished"}
    assert [faults.words(a.after_fault) for a in found] == [
        "", "repeats itself", "cut off, it did not end", "repeats itself"
    ]  # fmt: skip
