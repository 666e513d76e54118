from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from tuneloop.base import language
from tuneloop.monitor.remedies import Amendment, Remedy, RemedyName, Slower, amended, remedies, shown, words

SPIKE = Remedy(
    "spike", 12, 10, Amendment(skip=(11,), drop=(3,), slower=(Slower(10, 0.5, 12),)),
    {"at": 12, "cause": "rebound", "rate": 0.00316, "warmup": 12, "rows": ["9f0c2b7a41de"]},
)  # fmt: skip
MEMORY = Remedy("memory", 7, 6, Amendment(micro_batch_size=2), {"at": 7, "setting": "train.micro_batch_size: 2"})
OTHERS = [
    Remedy("stop", 50, 50, facts={"at": 50, "best": 40, "loss": 1.25}),
    Remedy("disk", 9, 8, facts={"at": 9, "n": 2, "bytes": 3_000_000}),
]
EACH = [SPIKE, MEMORY, *OTHERS]


def lines(*given: Remedy) -> list[dict[str, Any]]:
    """Lines of events.jsonl, as they come back from the disk."""
    return [json.loads(json.dumps({"time": 1.0, "event": "remedy", **one.as_event()})) for one in given]


def test_a_remedy_is_a_line_of_events_and_comes_back() -> None:
    assert remedies([{"event": "started"}, *lines(*EACH)]) == EACH


def test_amendments_are_put_on_top_of_each_other() -> None:
    smaller = Remedy("memory", 8, 7, Amendment(micro_batch_size=1, checkpointing=True))
    again = Remedy("spike", 30, 20, Amendment(skip=(11, 29), slower=(Slower(20, 0.5, 12),)))
    together = amended(lines(MEMORY, SPIKE, smaller, again))
    assert together == Amendment(1, True, False, (11, 29), (3,), (Slower(10, 0.5, 12), Slower(20, 0.5, 12)))
    assert not amended(lines(*OTHERS))


@pytest.mark.parametrize("tongue", language.LANGUAGES)
@pytest.mark.parametrize("remedy", EACH, ids=lambda one: one.remedy)
def test_each_says_what_why_and_what_to_do(remedy: Remedy, tongue: str) -> None:
    language.use(tongue)
    text = words(remedy)
    for part in (text.what, text.why, text.do):
        assert part
        assert not set("{}?？") & set(part), part
        assert part.isascii() == (tongue == "en"), part


def test_every_remedy_is_looked_at_here() -> None:
    assert {one.remedy for one in EACH} == set(get_args(RemedyName))


def test_on_the_screen_it_looks_like_an_alert() -> None:
    head, do = shown(SPIKE)
    assert head == (
        "↻ remedied: At step 12 the loss diverged; the run goes on from step 10 without that batch, at a learning rate "
        "of 0.0032 after a warm-up of 12 steps. (TL-REMEDY-SPIKE)"
    )
    assert do.startswith("   -> If it helps, set train.learning_rate: 0.0032")
    assert do.endswith("9f0c2b7a41de.")
    language.use("zh")
    assert shown(MEMORY)[0].startswith("↻ 已补救：第 7 步内存（显存）不足；训练从第 6 步继续")
