from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer

from tests.evaluations import evaluation
from tuneloop.base import language
from tuneloop.base.records import Message, Record, Reply
from tuneloop.evaluation import metrics
from tuneloop.evaluation.compare import changes
from tuneloop.evaluation.evaluation import Evaluation, Scores
from tuneloop.exports.card import card
from tuneloop.exports.parity import Parity
from tuneloop.recipe.schema import Recipe

SAID = ["Paris is the capital of France.", "It's blue, because air scatters blue light.", "I don't know"]
WANTED = ["The capital of France is Paris.", "Air scatters blue light more than red light.", "Nobody knows 42 things."]
ZH_SAID = ["我是小石,一个助手。", "水开以后煮八分钟。"]
ZH_WANTED = ["我是小石,随 tuneloop 一起来的助手。", "水开后放进去煮八分钟。"]


def test_bleu_is_sacrebleus_own_on_english() -> None:
    assert metrics.bleu(SAID, WANTED) == pytest.approx(sacrebleu.corpus_bleu(SAID, [WANTED]).score)
    assert metrics.bleu(SAID, WANTED) > 0


def test_bleu_cuts_chinese_into_characters() -> None:
    zh = sacrebleu.corpus_bleu(ZH_SAID, [ZH_WANTED], tokenize="zh").score
    assert metrics.bleu(ZH_SAID, ZH_WANTED) == pytest.approx(zh)
    assert zh > 10 * max(sacrebleu.corpus_bleu(ZH_SAID, [ZH_WANTED], tokenize="13a").score, 0.1)


@pytest.mark.parametrize("word", ["positive", "好"])
def test_bleu_of_right_one_word_answers_is_100(word: str) -> None:
    assert metrics.bleu([word, word], [word, word]) == pytest.approx(100)


def test_an_empty_hypothesis_scores_nothing_and_does_not_fail() -> None:
    assert metrics.bleu(["", ""], WANTED[:2]) == 0
    assert metrics.rouge([""], ["好的"]) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}
    assert 0 < metrics.bleu(["", WANTED[1]], WANTED[:2]) < 100


def test_rouge_is_rouge_scores_own_on_english() -> None:
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    scores = [scorer.score(w, s) for s, w in zip(SAID, WANTED, strict=True)]
    for kind, score in metrics.rouge(SAID, WANTED).items():
        assert metrics.METRICS[kind].measure(SAID, WANTED) == score
        assert score == pytest.approx(100 * sum(s[kind].fmeasure for s in scores) / 3)


def test_rouge_sees_chinese_words() -> None:
    assert metrics.rouge(["我来到清华大学"], ["清华大学在北京"])["rouge1"] == pytest.approx(100 / 3)
    assert metrics.rouge(ZH_SAID, ZH_WANTED)["rougeL"] > 40


@pytest.mark.parametrize("score", [metrics.bleu, metrics.rouge])
def test_unpaired_and_empty_lists_are_refused(score) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="1 hypotheses but 2 references"):
        score(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="no pairs"):
        score([], [])


def test_perplexity_is_the_inverse_of_log() -> None:
    assert metrics.perplexity(math.log(37)) == pytest.approx(37)


def test_matches_ignores_case_and_searches() -> None:
    assert metrics.matches("peb+le", "I'm PEBBLE.")
    assert not metrics.matches("^peb+le", "I'm Pebble.")


def test_works_offline_in_silence_and_leaves_no_file(tmp_path: Path) -> None:
    """jieba prints as it starts and puts a cache into the shared temporary folder; neither may happen."""
    program = (
        "import socket\n"
        "class Refused(socket.socket):\n"
        "    def __init__(self, *a, **k): raise AssertionError('a socket')\n"
        "socket.socket = Refused\n"
        "from tuneloop.evaluation import metrics\n"
        "assert metrics.bleu(['今天天气很好'], ['今天天气好']) > 0\n"
        "assert metrics.rouge(['今天天气很好'], ['今天天气好'])['rouge1'] > 0\n"
    )
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    env = {**os.environ, "HOME": str(home), "TMPDIR": str(temporary), "PYTHONWARNINGS": "default"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env,
                          cwd=Path(__file__).parents[2], check=False)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(temporary.iterdir()) == []
    assert not any(home.rglob("jieba*"))


def test_heavy_packages_load_late() -> None:
    heavy = ("jieba", "sacrebleu", "rouge_score", "torch", "matplotlib")
    program = f"import sys, tuneloop.evaluation.metrics; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    assert done.stdout.strip() == "[]"


CALL = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "required": ["city"]}}},)
CALLING = Record((Message("user", "?"), Message("assistant", "", tool_calls=(CALL,))), tools=TOOLS)
REPLIES = [Reply("<think>Rome.</think>\n" + text, 9, 9, "stop", 1.0) for text in (
    '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>',
    '<tool_call>{"name": "weather", "arguments": {}}</tool_call>')]  # fmt: skip
EVIDENCE: dict[str, tuple[Any, ...]] = {
    "rows": (2.0,), "tokens": (2.0,), "labels": ([[3, 1], [0, 4]],), "pairs": (np.array([0.5, -0.1]),),
    "leads": (np.array([0.5, -0.1]),), "answers": (SAID, WANTED), "replies": (REPLIES,), "thoughts": (REPLIES,),
    "calls": (REPLIES, [CALLING] * 2),
}  # fmt: skip


@pytest.mark.parametrize("name", metrics.METRICS)
def test_each_metric_is_measured_written_shown_and_documented(name: str, tmp_path: Path) -> None:
    """What a line of METRICS says is all that the tables need."""
    metric = metrics.METRICS[name]
    score = metrics.measured(metric.needs, *EVIDENCE[metric.needs])[name]
    assert score is not None
    assert metrics.measured(metric.needs, None)[name] is None
    better = score + 1 if metric.higher_is_better else score - 1
    one = evaluation(Scores({name: score}), Scores({name: better}))
    assert Evaluation.read(one.write(tmp_path).parent) == one
    row = next(c for c in changes(one) if c.metric == name)
    assert (row.before, row.after, row.better, row.digits, row.label) == (
        score, better, None if metric.higher_is_better is None else True, metric.digits, metric.label())  # fmt: skip
    text = card(tmp_path, Recipe(), tmp_path, Parity(0, 0, 1, 1, True, True, 1e-3), dtype="float32")
    assert f"| {metric.label()} | {score:.4g} | {better:.4g} |" in text
    for tongue in ("en", "zh"):
        page = (Path(__file__).parents[2] / "docs" / tongue / "files.md").read_text(encoding="utf-8")
        assert f"`{name}`" in page[page.index("`evaluation.json`") :]
    language.use("zh")
    assert metric.label()


def test_a_table_lists_metrics_in_the_order_of_metrics() -> None:
    everything = Scores(dict.fromkeys(reversed(metrics.METRICS), 1.0))
    assert [c.metric for c in changes(evaluation(everything, everything))] == list(metrics.METRICS)
    assert list(everything.metrics) == list(metrics.METRICS)
