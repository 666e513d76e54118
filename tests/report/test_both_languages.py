"""The report as a reader sees it: in both languages, in a real browser, with all that an evaluation may hold."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests import browser, evaluations
from tests.evaluations import scores
from tests.report.test_report import evaluation, make_run, written
from tuneloop.base import language
from tuneloop.evaluation.evaluation import Answer, Evaluation
from tuneloop.evaluation.intervals import Estimate
from tuneloop.evaluation.paired import Paired, RowScores, Separation
from tuneloop.report import report

LONG = "endless " * 12_500


def pair(metric: str, section: str, before: float, change: float, half: float, separation: Separation) -> Paired:
    """A metric with intervals, on 60 rows."""
    sides = [Estimate(x, x - half, x + half, 60, "bca") for x in (before, before + change, change)]
    return Paired(metric, section, *sides, separation, 0.01)


def full() -> Evaluation:
    """An evaluation with intervals, the general set, rows that became worse, and answers of every odd kind."""
    answers = (
        Answer("Capital of France?", "It is Paris.", "It is Lyon.", "Paris.", id="a", file="x/faq.csv", line=7),
        Answer("为什么天是蓝的？", "因为空气散射蓝光。", "因为空气散射红光。", "散射蓝光。", id="b"),
        Answer("ما هي عاصمة فرنسا؟", "هي باريس", "هي ليون 🎉", "باريس", id="c"),
        Answer("<b>odd</b>", "", LONG, "<script>x</script>", id="d"),
    )
    return replace(
        evaluation(),
        answers=answers,
        paired=(
            pair("loss", "", 2.931, -1.391, 0.1, "better"),
            pair("rougeL", "", 17.8, 2.1, 5.0, "not separable"),
            pair("loss", "general/knowledge-en", 2.2, 0.6, 0.1, "worse"),
            pair("loss", "general/knowledge-zh", 3.9, 0.05, 0.2, "not separable"),
            pair("loss", "file/exam.jsonl", 2.9, -0.2, 0.1, "better"),
        ),
        row_scores=(RowScores("a", "", {"accuracy": 1.0}, {"accuracy": 0.0}),),
    )


@pytest.fixture
def page(tmp_path: Path) -> Path:
    run = make_run(tmp_path)
    full().write(run)
    return report.write(run)


def test_both_languages_stand_in_one_file(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    full().write(run)
    english, chinese = written(run, "en").text, written(run, "zh").text
    for words, translated in (
        ("Before and after", "训练前后"), ("Became worse", "变差的行"),
        ("What it forgot", "遗忘了什么"), ("held-out loss", "验证集损失"), ("right before, wrong after", "原来答对"),
    ):  # fmt: skip
        assert words in english, words
        assert translated in chinese, translated
        assert translated not in english, translated
    for shared in ("[−1.491, −1.291]", "60 rows", "It is Lyon.", "为什么天是蓝的？", "exam.jsonl", "faq.csv"):
        assert shared in english, shared
    assert "more characters, in evaluation.json" in english
    assert LONG not in english
    assert "method: lora" in english
    assert "0f3a9c1b22de" in english, "the data version"
    assert "nan" not in re.findall(r"[a-z]+", english.lower())


def test_the_language_of_the_reader_is_chosen_at_first(page: Path) -> None:
    assert 'id="en" checked' in page.read_text(encoding="utf-8")
    language.use("zh")
    text = report.write(page.parent).read_text(encoding="utf-8")
    assert 'id="zh" checked' in text
    assert 'id="en" checked' not in text
    assert '<html lang="zh-CN">' in text


def test_the_file_is_not_twice_as_large_for_two_languages(page: Path) -> None:
    """Answers, curve and recipe stand once."""
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 1
    assert text.count("endless ") == 2_500, "one long answer, as far as it is shown"
    assert len(text) < 120_000


def test_words_that_differ_are_marked(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "It is <del>Paris</del>." in text
    assert "It is <ins>Lyon</ins>." in text
    assert "<del>蓝光</del>" in text
    assert "<ins>红光</ins>" in text


def test_an_evaluation_without_rows_breaks_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    nothing = Estimate(note="no rows")
    empty = Paired("loss", "", nothing, nothing, nothing, "not defined")
    general = Paired("loss", "general/safety-zh", nothing, nothing, nothing, "not defined")
    evaluations.evaluation(scores(None, rows=0, label_tokens=0), scores(None, rows=0, label_tokens=0),
                           paired=(empty, general), held=()).write(run)  # fmt: skip
    text = written(run).text
    assert "What it forgot" in text
    assert "nan" not in re.findall(r"[a-z]+", text.lower())
    assert "None" not in text


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_one_language_at_a_time_and_nothing_sticks_out(page: Path, tmp_path: Path, width: int) -> None:
    browser.chinese_fonts()
    seen = browser.in_both_languages(tmp_path, page, width)
    assert "What it forgot" in seen["en"]["text"]
    assert "遗忘了什么" not in seen["en"]["text"]
    assert "遗忘了什么" in seen["zh"]["text"]
    assert "What it forgot" not in seen["zh"]["text"]
    assert "optimizer step" not in seen["zh"]["text"], "the words of the curve change, too"
    for one in seen.values():
        assert one["wide"] <= width
        assert one["outside"] == 0
