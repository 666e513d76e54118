"""evaluation.json and its types: what was written once is read, and written again byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluations import evaluation, probe, scores, texts
from tuneloop.base.errors import RunError
from tuneloop.base.records import Message
from tuneloop.evaluation.evaluation import Answer, Classes, ClassScores, Evaluation, Mistake, Scores
from tuneloop.evaluation.metrics import by_class
from tuneloop.runs.run import Run

OLD = sorted((Path(__file__).parents[1] / "old_workspace" / "workspace" / "runs").glob("*/evaluation.json"))


def test_the_old_workspace_has_evaluations() -> None:
    assert {path.parent.name for path in OLD} == {"chat-1", "labels-1", "pairs-1", "whole-1"}


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.parent.name)
def test_an_old_file_is_written_again_byte_for_byte(path: Path, tmp_path: Path) -> None:
    read = Evaluation.read(path.parent)
    assert read is not None
    read.write(tmp_path)
    assert (tmp_path / "evaluation.json").read_bytes() == path.read_bytes()


def every() -> dict[str, Evaluation]:
    """One evaluation of each way to answer, with all that it may hold."""
    matrix = ((2, 1), (0, 3))
    classes = ClassScores(matrix, tuple(by_class(matrix)))
    answer = Answer("why?", "so", "because", "therefore", "", "repeats")
    context = (Message("system", "be kind"), Message("user", "hi"))
    asked = Answer("and?", "no", "yes", context=context)
    return {
        "text": evaluation(scores(bleu=1.0, rows=1), scores(bleu=None, rows=1), True, files={"a": (1, 2)},
                           answers=(asked,), show=(answer,)),
        "label": evaluation(texts(0.7, 0.5, 0.4), texts(0.3, 0.8, 0.8), task="classify",
                            classes=Classes(("bad", "good"), True, classes, classes),
                            mistakes=(Mistake("dull", "bad", "good", 0.9),)),
        "score": evaluation(scores(preferred=50, margin=-0.1), scores(preferred=90, margin=0.4), task="reward",
                            probes=(probe(answers=(answer,)),)),
    }  # fmt: skip


@pytest.mark.parametrize("way", ["text", "label", "score"])
def test_what_is_written_is_read(way: str, tmp_path: Path) -> None:
    one = every()[way]
    path = one.write(tmp_path)
    assert Evaluation.read(tmp_path) == one
    assert json.loads(path.read_text(encoding="utf-8")) == one.as_dict()


def test_its_keys_and_their_order_are_those_of_the_file() -> None:
    always = ["before", "after", "by_source", "held", "answers", "show", "probes"]
    assert list(every()["text"].as_dict()) == always
    assert list(every()["score"].as_dict()) == ["task", *always]
    assert list(every()["label"].as_dict()) == ["task", *always[:3], "classes", "mistakes", *always[3:]]
    assert list(every()["score"].as_dict()["before"]) == ["loss", "preferred", "margin", "label_tokens"]


def test_no_evaluation_is_none(tmp_path: Path) -> None:
    assert Evaluation.read(tmp_path) is None
    Run(tmp_path).write("evaluation.json", {})
    assert Evaluation.read(tmp_path) is None


def test_an_evaluation_of_an_earlier_version_lacks_what_it_did_not_measure(tmp_path: Path) -> None:
    Run(tmp_path).write("evaluation.json", {"before": None, "after": {"loss": 1.5}, "of a later version": 1})
    one = Evaluation.read(tmp_path)
    assert one == Evaluation(after=Scores({"loss": 1.5}))
    assert (one.held, one.after.measured_on, one.before["loss"]) == (None, None, None)


@pytest.mark.parametrize(
    "content", ["[]", '{"after": 3}', '{"after": {"loss": "low"}}', '{"probes": [{"name": "p"}]}', '{"show": ["?"]}']
)
def test_a_file_of_another_form_is_damaged(content: str, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunError) as caught:
        Evaluation.read(tmp_path)
    assert caught.value.code == "TL-RUN-DAMAGED"
    assert caught.value.where == str(tmp_path / "evaluation.json")


def test_a_metric_that_nobody_knows_is_no_score() -> None:
    with pytest.raises(ValueError, match="blue"):
        Scores({"blue": 1.0})


def test_what_is_not_finite_is_not_measured() -> None:
    one = Scores({"perplexity": float("inf"), "loss": float("nan"), "bleu": 1})
    assert one.metrics == {"loss": None, "perplexity": None, "bleu": 1}
