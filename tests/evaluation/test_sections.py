"""The sections beside the held-out rows: their losses are those of the rows alone, their answers are checked, and what
cannot be measured is said before anything expensive."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.made import jsonl
from tuneloop import pipeline
from tuneloop.base.errors import DataError, RecipeError
from tuneloop.base.records import Message, Record, Reply
from tuneloop.data.batches.examples import Examples
from tuneloop.data.tokens.encode import tokenize
from tuneloop.evaluation import sections
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.general_set import general_rows
from tuneloop.evaluation.sections import SectionScores, general_sections, read_sections, reference_losses, with_sections
from tuneloop.evaluation.whole_suite import require_measurable
from tuneloop.inference.trained import load_trained
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import EvaluatePart
from tuneloop.runs.run import Run, run_recipe
from tuneloop.tasks.chat import objective
from tuneloop.training.loop import held_loss
from tuneloop.training.packing import rows

CHATS = [{"question": f"Question {n}?", "answer": f"Answer {n}."} for n in range(5)]


def test_the_loss_of_a_row_is_that_of_the_row_alone(tiny_run: Path) -> None:
    trained = load_trained(tiny_run)
    trained.model.eval()
    records = [row.record() for row in general_rows()[:9]]
    losses = reference_losses(trained.model, trained.tokenizer, records, 300)
    for record, loss in zip(records, losses, strict=True):
        alone = Examples.of(tokenize(trained.tokenizer, [record]))
        total = held_loss(objective(trained.model, alone), rows(alone, 4096), torch.device("cpu"))
        assert loss == pytest.approx(total / int(alone.samples.labels.sum()), rel=1e-5)


def test_a_row_that_is_too_long_or_has_no_answer_has_no_loss(tiny_run: Path) -> None:
    trained = load_trained(tiny_run)
    ask = Message("user", "?")
    short, long = Message("assistant", "!"), Message("assistant", "word " * 2000)
    losses = reference_losses(trained.model, trained.tokenizer, [Record((ask, m)) for m in (short, long)], 300)
    assert losses[0] is not None
    assert losses[1] is None
    assert reference_losses(trained.model, trained.tokenizer, [Record((ask, long))], 300) == [None]


def test_answers_and_files_are_measured_written_and_read_back(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.parents[1], tmp_path / "w")
    run = Run(tmp_path / "w" / "runs" / "tiny-1")
    own = jsonl(tmp_path / "faq.jsonl", CHATS)
    text = run.recipe.read_text(encoding="utf-8")
    text = text.replace("general: loss", "general: answers").replace("\n  files: []", f"\n  files: [{own}]")
    run.recipe.write_text(text.replace("max_new_tokens: 8", "max_new_tokens: 1"), encoding="utf-8")
    evaluation = pipeline.measure(run)
    by_section: dict[str, int] = {}
    for answer in evaluation.section_answers:
        by_section[answer.section] = by_section.get(answer.section, 0) + 1
    assert by_section["file/faq.jsonl"] == 2  # evaluate.rows
    assert sum(by_section.values()) == 2 + len(general_rows())
    assert [len([r for r in evaluation.row_scores if r.section == "file/faq.jsonl"])] == [5]
    assert ("loss", "file/faq.jsonl") in {(pair.metric, pair.section) for pair in evaluation.paired}
    accuracies = [
        pair for pair in evaluation.paired if pair.metric == "accuracy" and pair.section.startswith("general/")
    ]
    assert {pair.separation for pair in accuracies} == {"not defined"}  # a random model is at chance
    assert {pair.before.note for pair in accuracies} == {"at chance"}
    assert Evaluation.read(run.path) == evaluation


def test_the_system_prompt_of_the_run_stands_before_every_question() -> None:
    recipe, _ = make_recipe({"data": [], "prepare": {"system": "Be brief."}})
    every = [record for section in read_sections(recipe) for record in section.records]
    assert {record.messages[0] for record in every} == {Message("system", "Be brief.")}


def test_an_accuracy_above_chance_is_told() -> None:
    right, wrong = Reply("", 0, 0, "stop"), SectionScores({}, {})
    [section] = [s for s in general_sections(EvaluatePart(general="answers"), None) if s.name == "general/choice-en"]

    def scores(count: int) -> SectionScores:
        return SectionScores(
            {(section.name, r.id): {"accuracy": float(k < count)} for k, r in enumerate(section.answered)},
            {(section.name, r.id): right for r in section.answered},
        )

    for before, defined in ((12, True), (3, False)):
        evaluation = with_sections(Evaluation(), [section], scores(before), scores(2))
        [pair] = [p for p in evaluation.paired if p.metric == "accuracy"]
        assert (pair.before.estimate is not None) is defined
    assert with_sections(Evaluation(), [section], wrong, wrong).section_answers == ()


def test_what_cannot_be_measured_is_said_before_training(tmp_path: Path) -> None:
    lost, _ = make_recipe({"data": [], "evaluate": {"files": [str(tmp_path / "lost.json")]}})
    with pytest.raises(DataError, match="TL-DATA-MISSING"):
        require_measurable(lost)
    labels = jsonl(tmp_path / "labels.jsonl", [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(6)])
    labelled, _ = make_recipe({"data": [], "evaluate": {"files": {"path": str(labels), "name": "exam"}}})
    require_measurable(labelled)
    with pytest.raises(DataError, match="TL-DATA-EVALUATE"):
        read_sections(labelled)
    classifier, _ = make_recipe({"data": [], "train": {"task": "classify"}, "evaluate": {"files": str(labels)}})
    with pytest.raises(RecipeError, match="TL-RECIPE-CLASH"):
        require_measurable(classifier)


def test_paths_of_files_stay_true_in_the_run_folder(tiny_run: Path, tmp_path: Path) -> None:
    recipe, _ = make_recipe({"data": [], "evaluate": {"files": ["faq.jsonl"], "general": False}})
    assert recipe.evaluate.general == "off"
    assert [file.path for file in recipe.evaluate.files] == ["faq.jsonl"]
    assert run_recipe(tiny_run).evaluate.general == "loss"
    assert sections.read_sections(make_recipe({"data": [], "evaluate": {"general": "off"}})[0]) == []
