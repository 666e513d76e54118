from __future__ import annotations

import pytest

from tests.evaluations import evaluation, probe, scores
from tuneloop.base import language
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.report.verdict import Headline, verdict


@pytest.mark.parametrize(
    ("measured", "tone", "text"),
    [
        (evaluation(2.0, 1.5), "good", "The held-out loss fell from 2.00 to 1.50."),
        (evaluation(2.0, 2.5), "bad", "The held-out loss rose from 2.00 to 2.50."),
        (evaluation(2.0, 2.001), "plain", "The held-out loss stayed at 2.00."),
        (evaluation(2.0, 1.5, True), "good", 'The probe "p0" passed. The held-out loss fell from 2.00 to 1.50.'),
        (evaluation(2.0, 1.5, True, True), "good", "All 2 probes passed. The held-out loss fell from 2.00 to 1.50."),
        (evaluation(2.0, 1.5, True, False), "bad",
         "1 of 2 probes failed: p1. The held-out loss fell from 2.00 to 1.50."),
        (evaluation(2.0, 2.5, True), "bad", 'The held-out loss rose from 2.00 to 2.50. The probe "p0" passed.'),
        (evaluation(2.0, 1.5, files={"a": (3.0, 1.0), "b": (1.0, 1.2)}), "good",
         "The held-out loss fell from 2.00 to 1.50. But it rose on b (1.00 → 1.20)."),
        (evaluation(2.0, 1.5, files={"a": (3.0, 1.0), "b": (1.0, 1.005)}), "good",
         "The held-out loss fell from 2.00 to 1.50."),
        (evaluation(2.0, None), "bad", "The held-out loss after training is not a number: do not use this version."),
    ],
)  # fmt: skip
def test_words(measured: Evaluation, tone: str, text: str) -> None:
    assert verdict(measured) == Headline(tone, text)  # type: ignore[arg-type]


def test_nothing_held_out_says_nothing_about_loss() -> None:
    nothing = scores(None, label_tokens=0)
    assert verdict(evaluation(nothing, nothing)).tone == "plain"
    said = "Nothing was held out, so there is no comparison of loss: raise prepare.validation or add rows."
    assert verdict(evaluation(nothing, nothing)).text == said
    assert verdict(evaluation(nothing, nothing, probes=(probe("p"),))).text == f'The probe "p" passed. {said}'


def test_a_run_without_evaluation_says_how_far_it_came() -> None:
    metrics = [{"step": 1200, "loss": 1.0}]
    started, stopped = {"event": "started", "time": 1.0}, {"event": "stopped", "time": 2.0}
    unknown = "Nothing was evaluated, so what changed is not known."
    unfinished = "Training has not finished; the last step on record is 1,200."
    assert verdict(None, [started], metrics).text == f"{unfinished} {unknown}"
    assert verdict(None, [started, stopped], metrics).text == f"Training was stopped at step 1,200. {unknown}"
    paused, failed = {"event": "paused", "step": 1200}, {"event": "failed", "code": "TL-RUN-NAN"}
    assert verdict(None, [started, paused], metrics).text.startswith("Training paused at step 1,200: the disk is full.")
    assert verdict(None, [started, failed], metrics).text.startswith("Training ended with an error after step 1,200.")
    assert verdict(None, [started, stopped, {"event": "finished"}, {"event": "evaluated"}], metrics).text == unknown
    assert verdict(None).tone == "plain"


def test_chinese_sentences_join_without_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {
        "All {total} probes passed.": "{total} 组检查题全部通过。",
        "The held-out loss fell from {before} to {after}.": "验证集损失从 {before} 降到 {after}。",
    }
    monkeypatch.setattr(language, "_catalogue", lambda chosen: words)
    language.use("zh")
    assert verdict(evaluation(2.0, 1.5, True, True)).text == "2 组检查题全部通过。验证集损失从 2.00 降到 1.50。"
