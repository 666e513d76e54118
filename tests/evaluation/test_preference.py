from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TALK
from tests.evaluations import evaluation, scores
from tests.made import jsonl
from tuneloop import pipeline
from tuneloop.base.records import Message, Record
from tuneloop.data.tokens.encode import tokenize
from tuneloop.data.version.dataset import open_dataset
from tuneloop.evaluation.compare import changes
from tuneloop.evaluation.evaluation import Evaluation, Scores
from tuneloop.evaluation.gate import better
from tuneloop.evaluation.preference import dialogues, likelihoods, prefers
from tuneloop.inference.trained import load_trained
from tuneloop.recipe.recipe import make_recipe
from tuneloop.report.verdict import verdict
from tuneloop.runs.run import Run


@pytest.fixture(scope="module", params=["pairs", "judged"])
def made(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run on preference pairs (dpo), or on judged answers (kto); auto finds the task."""
    workspace = tmp_path_factory.mktemp(request.param)
    asked = [(f"{q} {n}", a) for n in range(3) for q, a in TALK]
    no = "No. No. Ask somebody else."
    rows: list[Any] = [{"prompt": q, "chosen": a, "rejected": no} for q, a in asked]
    if request.param == "judged":
        rows = [{"prompt": q, "completion": a if k % 2 else no, "label": bool(k % 2)} for k, (q, a) in enumerate(asked)]
    recipe, _ = make_recipe({
        "name": "prefer", "model": str(tiny_model), "data": str(jsonl(workspace / "rows.jsonl", rows)),
        "prepare": {"validation": 6, "dedupe": "off"},
        "train": {"epochs": 8, "learning_rate": 1e-2, "batch_size": 4, "lora": {"rank": 4}},
        "evaluate": {"rows": 2, "max_new_tokens": 4, "show": ["Who are you?"]},
    })  # fmt: skip
    run = pipeline.train(recipe, pipeline.prepare(recipe, workspace=workspace), workspace=workspace)
    pipeline.evaluate(run)
    return run


def held(run: Run) -> list[Record]:
    return open_dataset(Path(run.read("dataset.json")["path"])).records("validation")


def test_what_is_preferred_is_measured_before_and_after(made: Run) -> None:
    found = made.read("evaluation.json")
    rows = held(made)
    paired = rows[0].kind == "preference"
    trained = load_trained(made.path)
    assert trained.recipe.train.task == "prefer"
    logs_of = []
    with torch.no_grad():
        for sample in tokenize(trained.tokenizer, rows):  # each alone, by the model's own logits
            ids = torch.tensor(sample.ids.tolist())
            logs = torch.log_softmax(trained.model(ids[None]).logits[0, :-1], -1).gather(1, ids[1:, None])[:, 0]
            logs_of.append(logs[torch.tensor(sample.trained[1:])].mean().item())
    if paired:
        leads = [b - w for b, w in zip(logs_of[::2], logs_of[1::2], strict=True)]
        assert found["after"]["margin"] == pytest.approx(sum(leads) / len(leads), abs=1e-4)
        assert found["after"]["preferred"] == pytest.approx(100 * sum(x > 0 for x in leads) / len(leads))
        assert found["after"]["preferred"] == 100
    else:
        assert "preferred" not in found["after"]
        good = [s for s, r in zip(logs_of, rows, strict=True) if r.label == "good"]
        bad = [s for s, r in zip(logs_of, rows, strict=True) if r.label == "bad"]
        if good and bad:
            assert found["after"]["margin"] == pytest.approx(sum(good) / len(good) - sum(bad) / len(bad), abs=1e-4)
    if "margin" in found["after"]:
        assert found["after"]["margin"] > found["before"]["margin"]
        assert "margin" in {c.metric for c in changes(Evaluation.from_dict(found)) if c.measured}


def test_questions_are_answered_and_compared_with_the_better_answer(made: Run) -> None:
    found = made.read("evaluation.json")
    assert found["held"] == [r.id for r in held(made)]
    liked = {m.content for r in dialogues(held(made)) for m in r.messages if m.role == "assistant"}
    assert found["answers"]
    assert {a["reference"] for a in found["answers"]} <= liked
    assert "No. No. Ask somebody else." not in {a["reference"] for a in found["answers"]}
    total = found["after"]["label_tokens"]
    tokenizer = load_trained(made.path).tokenizer
    assert total == sum(s.labels for s in tokenize(tokenizer, dialogues(held(made))))
    report = (made.path / "report.html").read_text(encoding="utf-8")
    assert ("Of the held-out pairs" in report) == ("preferred" in found["after"])


def test_a_pair_becomes_the_dialogue_that_ends_with_its_better_answer() -> None:
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    pair = Record(turns, kind="preference", rejected=(Message("assistant", "e"),))
    (dialogue,) = dialogues([pair])
    assert dialogue.kind == "chat"
    assert [m.trained for m in dialogue.messages] == [False, False, False, True]
    good, bad = (Record(turns, kind="judged", label=label) for label in ("good", "bad"))
    assert dialogues([good, bad]) == [replace(dialogue, rejected=())]
    chat = Record(turns)
    assert dialogues([chat]) == [chat]


def test_without_preference_rows_nothing_is_measured(made: Run) -> None:
    trained = load_trained(made.path)
    chat = Record((Message("user", "a"), Message("assistant", "b")))
    assert prefers(trained, trained.model, [chat], likelihoods) == {}


def test_the_verdict_and_the_gate_go_by_the_pairs() -> None:
    def pairs(loss: float, preferred: float, margin: float) -> Scores:
        return scores(loss, preferred=preferred, margin=margin)

    said = verdict(evaluation(pairs(2.0, 50, 0.1), pairs(2.4, 80, 0.5)))
    assert said.tone == "good"
    assert "80 %, before in 50 %" in said.text
    assert verdict(evaluation(pairs(2.0, 50, 0.1), pairs(1.0, 40, 0.0))).tone == "bad"
    assert better(evaluation(after=pairs(2.0, 70, 0.1)), evaluation(after=pairs(2.4, 80, 0.5))).better
    assert not better(evaluation(after=pairs(2.0, 80, 0.1)), evaluation(after=pairs(1.0, 70, 0.5))).better
