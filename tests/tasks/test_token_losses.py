"""Losses of label tokens: their gradient is autograd's of the formula, and measurements are in cross entropy."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tuneloop import pipeline
from tuneloop.base.errors import RecipeError
from tuneloop.data.batches.pack import Batch, pack
from tuneloop.data.tokens.samples import Sample
from tuneloop.model.load import load_model
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import SftPart
from tuneloop.tasks.loss import LossModel
from tuneloop.tasks.token_losses import TOKEN_LOSSES, focal


def batch() -> Batch:
    generator = np.random.default_rng(0)
    return pack(
        [Sample(generator.integers(3, 400, n, dtype=np.int32), np.arange(n) > 3, "", True) for n in (11, 30, 7)]
    )


def naive(model: Any, row: Batch, gamma: float) -> torch.Tensor:
    """The formula in plain words, sample by sample, over the whole logits."""
    total, start = torch.zeros(()), 0
    for length in row.segments:
        ids = row.input_ids[:, start : start + length]
        at = [int(p) - start for p in row.positions if start <= p < start + length]
        chance = model(input_ids=ids).logits[0, at].float().softmax(-1)
        p = chance[torch.arange(len(at)), ids[0, [k + 1 for k in at]]]
        total = total + (-((1 - p) ** gamma) * p.log()).sum()
        start += length
    return total


@pytest.mark.parametrize("own_head", [False, True])
def test_value_and_gradient_are_those_of_the_formula(own_head: bool, tiny_model: Path) -> None:
    model: Any = load_model(tiny_model)
    part, row = SftPart(loss="focal", gamma=1.5), batch()
    objective = LossModel(model, own_head=own_head, token_loss=partial(focal, part=part)).train()
    losses = objective(row)
    wanted = naive(model, row, 1.5)
    assert losses.total.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert losses.per_item.sum().item() == pytest.approx(wanted.item(), rel=1e-5)
    weights = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(losses.total, weights), torch.autograd.grad(wanted, weights), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_measurements_are_in_cross_entropy(name: str, tiny_model: Path) -> None:
    model, row = load_model(tiny_model), batch()
    measured = LossModel(model, token_loss=partial(TOKEN_LOSSES[name], part=SftPart())).eval()
    with torch.no_grad():
        assert torch.equal(measured(row).total, LossModel(model).eval()(row).total)


def test_gamma_0_is_cross_entropy(tiny_model: Path) -> None:
    model, row = load_model(tiny_model), batch()
    zero = LossModel(model, token_loss=partial(focal, part=SftPart(loss="focal", gamma=0.0))).train()
    assert zero(row).total.item() == pytest.approx(LossModel(model).train()(row).total.item(), rel=1e-6)


def test_a_recipe_trains_with_it(tiny_model: Path, talk_file: Path, tmp_path: Path) -> None:
    lines = {}
    for name in ("cross_entropy", "focal"):
        recipe, _ = make_recipe({
            "name": name, "model": str(tiny_model), "data": str(talk_file), "prepare": {"max_length": 128},
            "train": {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-4, "sft": {"loss": name}},
        })  # fmt: skip
        run = pipeline.train(recipe, pipeline.prepare(recipe, workspace=tmp_path), workspace=tmp_path)
        lines[name] = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    first = {name: next(line["loss"] for line in every if "loss" in line) for name, every in lines.items()}
    assert 0.8 * first["cross_entropy"] < first["focal"] < first["cross_entropy"], "a model that knows nothing yet"
    held = [next(line["eval_loss"] for line in reversed(every) if "eval_loss" in line) for every in lines.values()]
    assert held[0] == pytest.approx(held[1], rel=0.01)


def test_other_tasks_have_no_such_loss() -> None:
    with pytest.raises(RecipeError, match=r"train\.sft"):
        make_recipe({"data": "x.jsonl", "train": {"task": "prefer", "sft": {"loss": "focal"}}})
