from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from tests.evaluations import evaluation, texts
from tuneloop.evaluation.before_after import MEASURES
from tuneloop.evaluation.evaluation import Answer, Mistake
from tuneloop.exports.card import USES
from tuneloop.exports.evidence import EVIDENCE, QUESTIONS, dialogues
from tuneloop.inference.open import ANSWERERS
from tuneloop.model.head import Answers
from tuneloop.tasks.table import TASKS


def test_each_way_to_answer_is_served_measured_and_exported() -> None:
    ways = set(get_args(Answers))
    assert {task.answers for task in TASKS.values()} == ways
    for table in (ANSWERERS, MEASURES, EVIDENCE, USES):
        assert set(table) == ways


def test_the_evaluations_dialogues_are_asked(tmp_path: Path) -> None:
    assert dialogues(tmp_path) == []
    answers = [
        {"prompt": "Who?", "before": "x", "after": "y", "reference": "Pebble."},
        {"prompt": "Why?", "before": "x", "after": "y", "reference": ""},
        {"prompt": "Mute?", "before": "x", "after": "", "reference": ""},
    ]
    (tmp_path / "evaluation.json").write_text(json.dumps({"answers": answers}), encoding="utf-8")
    said = [[m["content"] for m in chat] for chat in dialogues(tmp_path)]
    assert said == [["Who?", "Pebble."], ["Why?", "y"]]


def test_a_classifiers_mistakes_are_asked_before_all_others(tmp_path: Path) -> None:
    mistake, shown = Mistake("dull", "bad", "good", 0.9), Answer("fine?", "good", "good")
    evaluation(texts(0.7, 0.5, 0.4), texts(0.3, 0.8, 0.8), mistakes=(mistake,), show=(shown,)).write(tmp_path)
    asked = EVIDENCE["label"].questions(tmp_path, None, None, None)  # type: ignore[arg-type]
    assert asked.texts == ["fine?", *QUESTIONS], "mistakes are written with classes alone"
