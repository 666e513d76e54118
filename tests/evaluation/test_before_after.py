from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from tuneloop import pipeline
from tuneloop.base.records import Message, Record
from tuneloop.data.tokens.encode import tokenize
from tuneloop.evaluation.before_after import held_out_loss, measure_before_after, questions, untrained
from tuneloop.inference.generate import Answerer
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import Trained, load_trained
from tuneloop.model.head import Head
from tuneloop.model.load import load_model
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.run import Run
from tuneloop.tasks.chat import CHAT
from tuneloop.tasks.loss import LossModel
from tuneloop.tasks.task import TaskContext
from tuneloop.training.packing import rows

SHOW = ["Who are you?", "Name a colour."]
PROBES = [
    {"name": "any", "prompts": ["Who are you?", "你是谁？"], "expect": ".", "at_least": 0},
    {"name": "never", "prompts": ["Count."], "expect": "no such word", "at_most": 0},
]


@pytest.fixture(scope="module", params=["lora", "full"])
def made(
    request: pytest.FixtureRequest, tiny_model: Path, talk_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A finished run, with a dropout that would be heard in its answers."""
    workspace = tmp_path_factory.mktemp(f"both-{request.param}")
    recipe, _ = make_recipe(
        {
            "name": "both", "model": str(tiny_model), "data": str(talk_file),
            "prepare": {"system": "Be brief.", "near": 1.0},  # near repetitions on both sides: what is learnt shows
            "train": {"method": request.param, "epochs": 2, "learning_rate": 0.02,
                      **({"lora": {"rank": 4, "dropout": 0.5}} if request.param == "lora" else {})},
            "evaluate": {"rows": 3, "max_new_tokens": 8, "show": SHOW, "probes": PROBES},
        }
    )  # fmt: skip
    return pipeline.train(recipe, pipeline.prepare(recipe, workspace=workspace), workspace=workspace)


def held(run: Run) -> list[Record]:
    from tuneloop.data.version.dataset import open_dataset

    return open_dataset(Path(run.read("dataset.json")["path"])).records("validation")


def said(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    chats = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": p}] for p in prompts]
    return [Answerer(model, tokenizer).answer([c], max_new_tokens=8)[0].text for c in chats]


def loss_of(model: Any, tokenizer: Any, records: list[Record]) -> float:
    module = LossModel(model)
    with torch.no_grad():
        samples = tokenize(tokenizer, records)
        return sum(module(row).total.item() for row in rows(samples, 1, packing=False)) / sum(s.labels for s in samples)


def test_before_is_the_base_and_after_is_what_was_trained(made: Run, tiny_model: Path) -> None:
    spoken: list[str] = []
    found = measure_before_after(load_trained(made.path), held(made), spoken.append).as_dict()
    assert len(spoken) == 2
    assert json.loads(json.dumps(found)) == found
    base, tokenizer = load_model(tiny_model), load_tokenizer(tiny_model)
    trained = load_trained(made.path)
    for when, model in (("before", base), ("after", trained.model)):
        assert found[when]["loss"] == pytest.approx(loss_of(model, tokenizer, held(made)), abs=1e-4)
        assert [row[when] for row in found["show"]] == said(model, tokenizer, SHOW)
        assert [a[when] for p in found["probes"] for a in p["answers"]] == said(
            model, tokenizer, [q for p in PROBES for q in p["prompts"]]
        )
    assert found["after"]["loss"] < found["before"]["loss"]
    assert [row["prompt"] for row in found["show"]] == SHOW
    assert len(found["answers"]) == found["after"]["rows"] == 3
    assert [(p["name"], p["passed"]) for p in found["probes"]] == [("any", True), ("never", True)]
    last = [json.loads(line) for line in made.metrics.read_text(encoding="utf-8").splitlines()][-1]
    assert found["after"]["loss"] == pytest.approx(last["eval_loss"], abs=1e-4), (
        "the last line of the run says the same"
    )


def test_twice_the_same(made: Run) -> None:
    trained = load_trained(made.path)
    one, two = (measure_before_after(trained, held(made), lambda text: None) for _ in range(2))
    assert one == two
    assert not any(m.training for m in trained.model.modules())


def test_what_is_set_aside_comes_back(made: Run, tiny_model: Path) -> None:
    ids = torch.arange(3, 20)[None]
    trained = load_trained(made.path)
    with torch.no_grad():
        after = trained.model(ids).logits
        with untrained(trained) as base:
            assert torch.equal(base(ids).logits, load_model(tiny_model)(ids).logits)
        assert torch.equal(trained.model(ids).logits, after)
        with pytest.raises(ZeroDivisionError), untrained(trained):
            raise ZeroDivisionError
        assert torch.equal(trained.model(ids).logits, after)
    assert isinstance(trained.model, PeftModel) == (made.trained_folder() == made.path / "adapter")


def test_rows_that_have_no_label_have_no_loss(tiny_model: Path) -> None:
    measure = held_out_loss(load_model(tiny_model), load_tokenizer(tiny_model), 512)
    assert measure([]) == (0.0, 0)
    one = [Record((Message("user", "a"), Message("assistant", "b")))]
    total, labels = measure(one)
    assert labels == 2, "the answer and its end"
    assert total > 0
    assert measure(one * 3) == pytest.approx((3 * total, 3 * labels), rel=1e-5)


def test_the_questions_of_a_recipe() -> None:
    def recipe(**evaluate: Any) -> Recipe:
        return make_recipe({"evaluate": evaluate})[0]

    assert questions(recipe(show=SHOW, probes=PROBES)) == SHOW
    assert questions(recipe(probes=PROBES)) == ["Who are you?", "Count."]
    assert questions(recipe()) == []


def test_no_rows_and_no_prompts_are_an_evaluation_too(tiny_model: Path) -> None:
    recipe, _ = make_recipe({"model": str(tiny_model), "train": {"method": "full"}})
    tokenizer = load_tokenizer(tiny_model)
    setting = TaskContext(recipe.train, tokenizer)
    trained = Trained(load_model(tiny_model), tokenizer, recipe, CHAT, setting, Head())
    found = measure_before_after(trained, [], lambda text: None).as_dict()
    assert found["before"]["loss"] is found["after"]["loss"] is None
    assert found["answers"] == found["show"] == found["probes"] == []
