from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification

from tests.conftest import TALK
from tests.made import jsonl
from tuneloop import pipeline
from tuneloop.base.errors import ServeError
from tuneloop.base.records import Message, Record
from tuneloop.data.batches.pack import pack_examples
from tuneloop.data.tokens.encode import tokenize
from tuneloop.data.version.dataset import open_dataset
from tuneloop.evaluation.compare import changes
from tuneloop.evaluation.preference import prefers, rewards
from tuneloop.inference.open import make_answerer
from tuneloop.inference.scorer import Scorer
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import Trained, load_trained
from tuneloop.model.head import Head
from tuneloop.model.load import load_model
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import TrainPart
from tuneloop.runs.run import Run
from tuneloop.tasks.reward import REWARD, RewardModel
from tuneloop.tasks.task import SplitView, TaskContext

PAIRS = [
    Record((Message("user", f"{q} {n}"), Message("assistant", a)), kind="preference",
           rejected=(Message("assistant", "No. No. Ask somebody else."),))
    for n in range(3) for q, a in TALK
]  # fmt: skip


def objective(folder: Path) -> tuple[RewardModel, TaskContext]:
    torch.manual_seed(1)
    setting = TaskContext(TrainPart(), load_tokenizer(folder))
    model = load_model(folder, head=REWARD.head(setting, None))
    items = REWARD.items(SplitView(tokenize(setting.tokenizer, PAIRS), lambda: PAIRS), setting)
    inner = REWARD.objective(model, items, setting)
    assert isinstance(inner, RewardModel)
    return inner, setting


def test_the_loss_is_bradley_terrys_of_plain_scores(tiny_model: Path) -> None:
    inner, setting = objective(tiny_model)
    samples = tokenize(setting.tokenizer, PAIRS[:3])
    items = REWARD.items(SplitView(samples, lambda: PAIRS[:3]), setting)
    scores = [inner.model(torch.tensor(s.ids.tolist())[None]).logits.item() for s in samples]
    wanted = sum(np.log1p(np.exp(-(b - w))) for b, w in zip(scores[::2], scores[1::2], strict=True))
    assert inner(pack_examples(items, range(3))).total.item() == pytest.approx(wanted, abs=1e-5)
    idle = inner(pack_examples(items, [0], labelled=False)).total
    assert idle.item() == 0
    idle.backward()
    assert all(p.grad is not None for p in inner.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_reward_model_learns_and_any_tool_loads_it(method: str, tiny_model: Path, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "pairs.jsonl", (
        {"prompt": r.messages[0].content, "chosen": r.messages[1].content, "rejected": r.rejected[0].content}
        for r in PAIRS
    ))  # fmt: skip
    lora = {"lora": {"rank": 4}} if method == "lora" else {}
    recipe, _ = make_recipe({
        "name": "reward", "model": str(tiny_model), "data": str(file), "prepare": {"validation": 6, "dedupe": "off"},
        "train": {"task": "reward", "method": method, "epochs": 6, "learning_rate": 5e-3, "batch_size": 4, **lora},
    })  # fmt: skip
    run = pipeline.train(recipe, pipeline.prepare(recipe, workspace=tmp_path), workspace=tmp_path)
    told = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    assert [line["accuracy"] for line in told if "accuracy" in line][-1] == 1
    evaluation = pipeline.measure(run)
    after = evaluation.after
    assert after["loss"] == pytest.approx([line["eval_loss"] for line in told if "eval_loss" in line][-1], abs=1e-4)
    assert after["preferred"] == 100
    assert after["margin"] > evaluation.before["margin"]
    assert {c.metric for c in changes(evaluation) if c.measured} >= {"preferred", "margin", "loss"}
    assert "100" in (run.path / "report.html").read_text(encoding="utf-8")
    plainly(run, method)


def plainly(run: Run, method: str) -> None:
    """transformers and PEFT, without us, give the same rewards."""
    trained = load_trained(run.path)
    held = open_dataset(Path(run.read("dataset.json")["path"])).records("validation")
    samples = tokenize(trained.tokenizer, held)
    if method == "full":
        model = AutoModelForSequenceClassification.from_pretrained(run.path / "model")
    else:
        model = AutoPeftModelForSequenceClassification.from_pretrained(run.path / "adapter", num_labels=1)
    model.eval()
    with torch.no_grad():
        scores = np.array([model(torch.tensor(s.ids.tolist())[None]).logits.item() for s in samples])
    margin = float((scores[::2] - scores[1::2]).mean())
    assert prefers(trained, trained.model, held, rewards)["margin"] == pytest.approx(margin, abs=1e-4)


def test_its_head_has_one_label() -> None:
    assert REWARD.head(TaskContext(TrainPart(), None), None) == Head("classifier", ("reward",))


def test_it_scores_answers_and_writes_none(tiny_model: Path) -> None:
    inner, setting = objective(tiny_model)
    recipe, _ = make_recipe({"model": str(tiny_model), "train": {"task": "reward"}})
    head = REWARD.head(setting, None)
    scorer = make_answerer(Trained(inner.model, setting.tokenizer, recipe, REWARD, setting, head))
    assert isinstance(scorer, Scorer)
    samples = tokenize(setting.tokenizer, PAIRS[:1])
    alone = [inner.model(torch.tensor(s.ids.tolist())[None]).logits.item() for s in samples]
    chats = [[*(m.as_chat() for m in PAIRS[0].prompt), answer.as_chat()]
             for answer in (PAIRS[0].messages[-1], PAIRS[0].rejected[0])]  # fmt: skip
    assert scorer.scores(chats) == pytest.approx(alone, abs=1e-5)
    assert [r.text for r in scorer.answer(chats)] == [f"{score:.4f}" for score in scorer.scores(chats)]
    with pytest.raises(ServeError) as error:
        scorer.answer([chats[0][:1]])
    assert error.value.code == "TL-SERVE-NO-ANSWER"
