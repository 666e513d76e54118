from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tuneloop.base.records import Message, Record
from tuneloop.methods.wrap import wrap
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.journal import Journal
from tuneloop.training.optim import optimizer_for
from tuneloop.training.sampler import Sampler, answerable, answering, sampler_for, spread

HELD = [
    Record((Message("user", f"Question {n}?"), Message("assistant", f"Answer {n}."))) for n in range(4)
] + [Record((Message("assistant", "a text"),), kind="text")]  # fmt: skip


def recipe(**train: object) -> Recipe:
    part = {"sample_answers": 2, "lora": {"rank": 2, "dropout": 0.3}, "learning_rate": 0.01, **train}
    return Recipe.model_validate({"train": part, "evaluate": {"max_new_tokens": 5}})


def losses(folder: Path, journal: Path, *, sample: bool) -> list[float]:
    """Ten steps with dropout; with or without answers in between."""
    settings = recipe()
    model = wrap(load_model(folder), settings.train, 0)
    model.train()
    optimizer = optimizer_for(model, settings.train)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    said: list[str] = []
    sampler = sampler_for(model, tokenizer, settings, HELD, Journal(journal), said.append)
    assert sampler is not None
    torch.manual_seed(3)
    random.seed(3)
    out = []
    for step in range(10):
        ids = torch.tensor(np.random.default_rng(step).integers(3, 250, (1, 20)))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        out += [loss.item(), random.random()]
        if sample and step % 3 == 0:
            sampler.measured(step, 1.0)
    assert len(said) == (8 if sample else 0)
    return out


def test_answers_change_no_number_of_the_training(tiny_model: Path, tmp_path: Path) -> None:
    without = losses(tiny_model, tmp_path / "a.jsonl", sample=False)
    with_answers = losses(tiny_model, tmp_path / "b.jsonl", sample=True)
    assert with_answers == without
    assert not (tmp_path / "a.jsonl").exists()
    lines = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [0, 0, 3, 3, 6, 6, 9, 9]
    assert [(line["prompt"], line["reference"]) for line in lines[:2]] == [
        ("Question 0?", "Answer 0."), ("Question 2?", "Answer 2."),
    ]  # fmt: skip
    assert lines[0]["id"] == HELD[0].id
    assert {type(line["answer"]) for line in lines} == {str}
    assert lines[0]["answer"] != lines[-2]["answer"], "the model changed in between"


def test_every_module_is_left_in_its_mode(tiny_model: Path) -> None:
    model = wrap(load_model(tiny_model), recipe().train, 0)
    model.train()
    still = next(m for m in model.modules() if isinstance(m, torch.nn.Linear))
    still.eval()  # a frozen part that a method keeps in evaluation mode
    seen: list[bool] = []

    def fail() -> None:
        with answering(model):
            seen.extend(m.training for m in model.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not any(seen)
    assert model.training
    assert not still.training


def test_which_rows_are_asked() -> None:
    user, good, bad = Message("user", "q"), Message("assistant", "a"), Message("assistant", "b")
    assert answerable(Record((user, good)))
    assert answerable(Record((user, good), kind="preference", rejected=(bad,)))
    assert not answerable(Record((user, good), tools=({"name": "x"},)))
    assert not answerable(Record((good,), kind="text"))
    assert not answerable(Record((user,), kind="label", label="spam"))
    assert not answerable(Record((Message("system", "s"), good)))
    assert [r.line for r in spread([Record((), line=n) for n in range(5)], 9)] == [0, 1, 2, 3, 4]
    assert spread([], 3) == []


def test_no_sampler_where_none_is_asked_for_or_none_can_be(tiny_model: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    journal = Journal(tmp_path / "s.jsonl")
    assert sampler_for(model, tokenizer, recipe(sample_answers=0), HELD, journal, print) is None
    assert sampler_for(model, tokenizer, recipe(), HELD[4:], journal, print) is None
    long = Record((Message("user", "long " * 500), Message("assistant", "!")))
    made = sampler_for(model, tokenizer, recipe(), [long, *HELD], journal, print)
    assert isinstance(made, Sampler)
    assert [r.prompt[-1].content for r in made.questions] == ["Question 0?", "Question 2?"]
