"""Equal recipes give equal losses: however samples share forward passes, and as transformers itself would count them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tests.conftest import TALK
from tuneloop.base.records import Message, Record
from tuneloop.data.batches.loader import Steps, loader
from tuneloop.data.batches.pack import pack
from tuneloop.data.batches.plan import batch_plan
from tuneloop.data.tokens.encode import Sample, tokenize
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.methods.wrap import wrap
from tuneloop.model.checkpoint import State
from tuneloop.model.load import load_model
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import Recipe
from tuneloop.tasks.loss import LossModel
from tuneloop.training.loop import train
from tuneloop.training.optim import optimizer_for, scheduler_for
from tuneloop.training.step_result import StepResult

STEPS = 20


class Losses:
    def __init__(self) -> None:
        self.values: list[float] = []
        self.norms: list[float] = []

    def on_step(self, state: State, result: StepResult) -> None:
        self.values.append(result.read().loss)
        self.norms.append(result.read().grad_norm)

    def on_end(self, state: State) -> None:
        pass


def records() -> list[Record]:
    """Forty-eight dialogues of one and two turns and of very different lengths."""
    out = []
    for n in range(6):
        for i, (question, answer) in enumerate(TALK):
            turns = [Message("user", f"{question} {n}"), Message("assistant", answer * (1 + (n * i) % 4))]
            if i % 3 == 0:
                turns += [Message("user", "And then?"), Message("assistant", f"Then {n}.")]
            out.append(Record(tuple(turns)))
    return out


def recipe_of(**train: Any) -> Recipe:
    base = {"method": "lora", "learning_rate": 5e-3, "batch_size": 8, "max_steps": STEPS, "token_budget": 2048}
    recipe, _ = make_recipe({"prepare": {"max_length": 512}, "train": {**base, **train}})
    return recipe


def losses(folder: Path, samples: Sequence[Sample], recipe: Recipe) -> Losses:
    model = wrap(load_model(folder, "float32"), recipe.train, recipe.seed)
    inner = LossModel(model)
    plan = batch_plan(recipe, samples)
    optimizer = optimizer_for(inner, recipe.train)
    scheduler = scheduler_for(optimizer, recipe.train, STEPS)
    accelerator = Accelerator(cpu=True)
    wrapped, prepared = accelerator.prepare(inner, optimizer)
    seen = Losses()
    train(
        accelerator, wrapped, prepared, scheduler, loader(Steps(plan, samples, 0, STEPS), 0), State(),
        max_grad_norm=1.0, callbacks=[seen], stop=lambda: False,
    )  # fmt: skip
    return seen


@pytest.fixture(scope="module")
def samples(tiny_model: Path) -> list[Sample]:
    return tokenize(load_tokenizer(tiny_model), records())


@pytest.fixture(scope="module", params=["lora", "full"])
def plain(request: pytest.FixtureRequest, tiny_model: Path, samples: list[Sample]) -> tuple[str, Losses]:
    """A method, and what it loses with the plain recipe: computed once for all variants."""
    return request.param, losses(tiny_model, samples, recipe_of(method=request.param))


@pytest.mark.parametrize(
    "variant",
    [
        {"packing": False},
        {"micro_batch_size": 1},
        {"micro_batch_size": 4},
        {"token_budget": 512},
        {"checkpointing": True},
    ],
    ids=str,
)
def test_variants_of_one_recipe_lose_the_same(
    tiny_model: Path, samples: list[Sample], plain: tuple[str, Losses], variant: dict[str, Any]
) -> None:
    method, expected = plain
    got = losses(tiny_model, samples, recipe_of(method=method, **variant))
    assert len(got.values) == STEPS
    assert expected.values[-1] < expected.values[0] - 0.1  # it learns, so a loss that ignores the weights would be seen
    assert got.values == pytest.approx(expected.values, abs=1e-4)
    assert got.norms == pytest.approx(expected.norms, rel=1e-3)


def test_loss_and_gradient_are_those_of_transformers(tiny_model: Path, samples: list[Sample]) -> None:
    recipe = recipe_of(method="full")
    ours = wrap(load_model(tiny_model, "float32"), recipe.train, 0)
    theirs = load_model(tiny_model, "float32")
    theirs.set_attn_implementation("eager")
    theirs.requires_grad_(True)
    batch = samples[:8]
    labels = sum(s.labels for s in batch)
    mine = LossModel(ours)(pack(batch)).total / labels
    mine.backward()

    longest = max(len(s.ids) for s in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask, wanted = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, sample in enumerate(batch):
        n = len(sample.ids)
        ids[row, :n] = torch.from_numpy(sample.ids).long()
        mask[row, :n] = 1
        wanted[row, :n] = torch.where(torch.from_numpy(sample.trained), ids[row, :n], -100)
    reference = theirs(input_ids=ids, attention_mask=mask, labels=wanted).loss
    reference.backward()
    assert mine.item() == pytest.approx(reference.item(), abs=1e-5)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-5), name


def test_packed_samples_never_see_each_other(tiny_model: Path, samples: list[Sample]) -> None:
    """Changing one sample of a row leaves the other's loss as it was, bit for bit."""
    model = LossModel(load_model(tiny_model, "float32"))
    first, second = samples[0], samples[1]

    def share(row: list[Sample]) -> float:
        packed = pack(row)
        mine = packed.positions >= len(row[0].ids)
        own = replace(packed, positions=packed.positions[mine], targets=packed.targets[mine])
        with torch.no_grad():
            return float(model(own).total)

    replaced = Sample((first.ids + 7) % 400, first.trained, "x", True)
    assert share([first, second]) == share([replaced, second])


def test_chunked_loss_equals_one_chunk(
    tiny_model: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneloop.tasks import loss

    def both() -> tuple[float, torch.Tensor]:
        model = wrap(load_model(tiny_model, "float32"), recipe_of(method="full").train, 0)
        value = LossModel(model)(pack(samples[:8])).total
        value.backward()
        return value.item(), model.get_input_embeddings().weight.grad

    whole, gradient = both()
    monkeypatch.setattr(loss, "CHUNK", 480 * 7)
    parts, other = both()
    assert parts == pytest.approx(whole, rel=1e-6)
    assert torch.allclose(gradient, other, atol=1e-4)
