from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.assembled import assembled
from tests.conftest import TALK
from tuneloop.base.errors import DataError
from tuneloop.base.records import Message, Record
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import pack_examples
from tuneloop.data.tokens.encode import tokenize
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model import checkpoint
from tuneloop.model.load import load_model
from tuneloop.recipe.recipe import dump, make_recipe
from tuneloop.recipe.schema import PreferPart, Recipe
from tuneloop.runs.run import Run, new_run
from tuneloop.tasks.pairs import judged
from tuneloop.tasks.prefer import PREFER, Answers, PreferModel, dpo, ipo, kto, orpo, simpo
from tuneloop.tasks.task import SplitView, TaskContext
from tuneloop.training.loop import held_loss
from tuneloop.training.packing import packs_exactly, rows
from tuneloop.training.session import session

PAIRS = [
    Record(
        (Message("user", f"{question} {n}"), Message("assistant", answer)), file="pairs.json", line=n + 1,
        kind="preference", rejected=(Message("assistant", TALK[(k + 1) % len(TALK)][1] + " Or so."),),
    )
    for n in range(3) for k, (question, answer) in enumerate(TALK)
]  # fmt: skip
JUDGED = [
    Record((Message("user", f"{q} {n}"), Message("assistant", a)), kind="judged", label=["good", "bad"][k % 2])
    for n in range(3) for k, (q, a) in enumerate(TALK)
]  # fmt: skip


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gold(loss: str, part: PreferPart, sums: Any, reference: Any, counts: Any) -> float:
    """TRL's formulas (DPOTrainer, CPOTrainer with simpo, ORPOTrainer), of one pair, in numpy's double precision."""
    b, w = map(float, sums)
    rb, rw = map(float, reference)
    nb, nw = map(float, counts)
    if loss == "dpo":
        delta = (b - rb) - (w - rw)
        return -math.log(sigmoid(part.beta * delta)) * (1 - part.smoothing) - (
            math.log(sigmoid(-part.beta * delta)) * part.smoothing
        )
    if loss == "ipo":
        return ((b - rb) / nb - (w - rw) / nw - 1 / (2 * part.beta)) ** 2
    if loss == "simpo":
        return -math.log(sigmoid(part.beta * (b / nb - w / nw - part.margin / part.beta)))
    odds = (b / nb - w / nw) - (math.log1p(-math.exp(b / nb)) - math.log1p(-math.exp(w / nw)))
    return -b / nb - part.beta * math.log(sigmoid(odds))


@pytest.mark.parametrize(("loss", "function"), [("dpo", dpo), ("ipo", ipo), ("orpo", orpo), ("simpo", simpo)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_losses_are_those_of_trl(loss: str, function: Any, smoothing: float) -> None:
    part = PreferPart(beta=0.3, margin=0.7, smoothing=smoothing)
    generator = np.random.default_rng(0)
    sums = -generator.uniform(5, 30, (2, 6))
    reference = sums + generator.normal(0, 2, (2, 6))
    counts = generator.integers(3, 12, (2, 6)).astype(float)
    sides = [Answers(*(torch.tensor(x[k], dtype=torch.float32) for x in (sums, reference, counts))) for k in (0, 1)]
    ours = function(sides[0], sides[1], part).tolist()
    theirs = [gold(loss, part, sums[:, k], reference[:, k], counts[:, k]) for k in range(6)]
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_loss_of_judged_answers_is_that_of_trl() -> None:
    part = PreferPart(beta=0.3)
    answers = Answers(torch.tensor([-3.0, -9.0]), torch.tensor([-5.0, -8.0]), torch.tensor([4.0, 4.0]))
    ours = kto(answers, torch.tensor([1.0, 0.0]), torch.tensor(0.5), part).tolist()
    assert ours == pytest.approx([1 - sigmoid(0.3 * (2 - 0.5)), 1 - sigmoid(0.3 * (0.5 - -1))])


def test_odds_of_a_sure_answer_are_finite() -> None:
    sure = Answers(torch.zeros(1, requires_grad=True), torch.zeros(1), torch.ones(1))
    loss = orpo(sure, Answers(torch.tensor([-1.0]), torch.zeros(1), torch.ones(1)), PreferPart())
    loss.sum().backward()
    assert math.isfinite(loss.item())
    assert sure.sums.grad is not None
    assert torch.isfinite(sure.sums.grad).all()


class Sessions:
    """Runs of the tiny model on 20 rows (4 a step), 4 held out."""

    def __init__(self, folder: Path, workspace: Path, records: list[Record]) -> None:
        self.folder, self.workspace, self.records = folder, workspace, records
        self.tokenizer = load_tokenizer(folder)

    def rows(self, part: slice) -> SplitView:
        return SplitView(tokenize(self.tokenizer, self.records[part]), lambda: self.records[part])

    def recipe(self, loss: str, **train: Any) -> Recipe:
        settings = {"epochs": 1, "batch_size": 4, "learning_rate": 5e-3, "lora": {"rank": 2}, "task": "prefer",
                    "prefer": {"loss": loss, "beta": 2.0 if loss == "simpo" else 0.1}, **train}  # fmt: skip
        if settings.get("method") in {"full", "freeze"}:
            del settings["lora"]
        raw = {"name": "p", "model": str(self.folder), "prepare": {"max_length": 64}, "train": settings}
        return make_recipe(raw)[0]

    def begin(self, loss: str, **train: Any) -> tuple[Run, Recipe]:
        recipe = self.recipe(loss, **train)
        run = new_run(self.workspace, "p")
        run.recipe.write_text(dump(recipe), encoding="utf-8")
        return run, recipe

    def go(self, run: Run, recipe: Recipe, **options: Any) -> None:
        setting = TaskContext(recipe.train, self.tokenizer)
        items, held = (PREFER.items(self.rows(part), setting) for part in (slice(20), slice(20, None)))
        session(run, assembled(recipe, self.folder, items, held, task=PREFER, context=setting), **options)

    def run(self, loss: str, **train: Any) -> Run:
        run, recipe = self.begin(loss, **train)
        self.go(run, recipe)
        return run


def lines(run: Run, key: str) -> list[Any]:
    found = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [line[key] for line in found if key in line]


@pytest.fixture
def sessions(tiny_model: Path, tmp_path: Path) -> Sessions:
    return Sessions(tiny_model, tmp_path, PAIRS)


@pytest.mark.parametrize("method", ["lora", "full", "freeze"])
def test_dpo_begins_at_log_2_and_learns_to_tell(method: str, sessions: Sessions) -> None:
    run = sessions.run("auto", method=method, epochs=6)
    losses = lines(run, "loss")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < 0.8 * losses[0]
    assert lines(run, "accuracy")[-1] == 1
    assert lines(run, "margin")[-1] > 0
    assert lines(run, "eval_loss")[-1] < math.log(2)


@pytest.mark.parametrize("loss", ["ipo", "orpo", "simpo", "kto"])
def test_the_other_losses_fall(loss: str, sessions: Sessions) -> None:
    run = sessions.run(loss, epochs=4)
    losses = lines(run, "loss")
    assert losses[-1] < losses[0]
    assert lines(run, "margin")[-1] > lines(run, "margin")[0]
    assert (run.path / "reference-train.npy").exists() == (loss in {"ipo", "kto"})


def test_kto_learns_from_judged_answers(tiny_model: Path, tmp_path: Path) -> None:
    run = Sessions(tiny_model, tmp_path, JUDGED).run("auto", epochs=6)
    losses = lines(run, "loss")
    assert losses[0] == pytest.approx(0.5, abs=1e-5)
    assert losses[-1] < losses[0]
    assert lines(run, "anchor")[0] == pytest.approx(0, abs=1e-4)
    assert max(lines(run, "anchor")) > 0


def test_a_bin_loses_what_its_pairs_lose_alone(sessions: Sessions) -> None:
    for loss in ("dpo", "orpo", "kto"):
        recipe = sessions.recipe(loss)
        setting = TaskContext(recipe.train, sessions.tokenizer)
        model = load_model(sessions.folder)
        items = PREFER.items(sessions.rows(slice(6)), setting)
        inner = PREFER.objective(model, items, setting)
        assert packs_exactly(inner, items)
        assert PREFER.precompute_reference is not None
        keep = sessions.workspace / f"{loss}.npy"
        known = PREFER.precompute_reference(inner, items, rows(items, 512), keep)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        device = torch.device("cpu")
        together = held_loss(inner, rows(known, 4096), device)
        assert together == pytest.approx(held_loss(inner, rows(known, 1, packing=False), device), abs=1e-4)
        inner.train()
        assert inner(pack_examples(known, range(len(known)))).total.item() == pytest.approx(together, abs=1e-4)


def test_only_the_policy_has_a_gradient_and_z0_is_the_steps(tiny_model: Path, tmp_path: Path) -> None:
    made = Sessions(tiny_model, tmp_path, JUDGED)
    setting = TaskContext(made.recipe("kto").train, made.tokenizer)
    items = PREFER.items(made.rows(slice(6)), setting)
    inner = PREFER.objective(load_model(tiny_model), items, setting)
    assert isinstance(inner, PreferModel)
    row = pack_examples(Examples(items.samples, items.members, items.weights,
                           {**items.columns, "reference": np.full(len(items.samples), -500, np.float32)}),
                     range(6))  # fmt: skip
    inner.train()
    inner.before_step([row], lambda sums: sums)
    alone = [pack_examples(items, [k]) for k in range(6)]
    inner.eval()
    with torch.no_grad():
        gains = [inner.answers(one).sums[1].item() + 500 for one in alone]
    assert inner.anchor == pytest.approx(np.mean(gains), abs=1e-3)
    inner.before_step([row], lambda sums: torch.tensor([-1.0, 1.0]))
    assert inner.anchor == 0, "never below zero"


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_resumed_bit_for_bit_with_the_reference_it_had(loss: str, sessions: Sessions) -> None:
    """As after SIGKILL: the folder as it lay after a checkpoint, with a reference that nobody could compute again."""
    whole = sessions.run(loss, save_strategy="steps", save_steps=2, save_total_limit=None)
    run, recipe = sessions.begin(loss, save_strategy="steps", save_steps=2, save_total_limit=None)
    for name in ("metrics.jsonl", "events.jsonl", "reference-train.npy", "reference-validation.npy"):
        shutil.copy(whole.path / name, run.path / name)
    shutil.copytree(whole.checkpoints / "step-2", run.checkpoints / "step-2")
    assert checkpoint.newest(run.checkpoints) is not None
    sessions.go(run, recipe, resume=True)
    for key in ("loss", "grad_norm", "accuracy", "margin", "eval_loss"):
        assert lines(run, key) == lines(whole, key)
    files = [r.path / "adapter" / "adapter_model.safetensors" for r in (whole, run)]
    assert files[0].read_bytes() == files[1].read_bytes()
    other, _ = sessions.begin(loss, save_strategy="steps", save_steps=2)
    shutil.copytree(run.path, other.path, dirs_exist_ok=True)
    for later in other.checkpoints.iterdir():
        if later.name != "step-2":
            shutil.rmtree(later)
    shutil.rmtree(other.path / "adapter")
    np.save(other.path / "reference-train.npy", np.load(run.path / "reference-train.npy") + np.float32(3.5) * np.arange(
        len(np.load(run.path / "reference-train.npy")), dtype=np.float32))  # fmt: skip
    sessions.go(other, recipe, resume=True)
    assert lines(other, "loss") != lines(whole, "loss"), "the file is what a resumed run reads"


def test_the_last_answer_is_what_was_judged(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    first, second = (
        (Message("user", "One"), Message("assistant", "Two")),
        (Message("user", "3"), Message("assistant", "Four")),
    )
    records = [Record((*first, *second), kind="judged", label="good"), Record(first, kind="judged", label="bad")]
    items = judged(SplitView(tokenize(tokenizer, records), lambda: records), 512)
    own, other = (items.samples[k] for k in items.members[0].tolist())
    assert tokenizer.decode(own.ids[own.trained]) == "Four<|im_end|>"
    assert tokenizer.decode(other.ids[other.trained]) == "Two<|im_end|>"
    assert tokenizer.decode(other.ids[~other.trained]).endswith("3<|im_end|>\n<|im_start|>assistant\n")
    assert items.columns["good"].tolist() == [1, 0, 1, 0]


def test_pairs_taken_apart_never_meet_their_own_prompt(sessions: Sessions) -> None:
    items = judged(sessions.rows(slice(6)), 512)
    assert len(items) == 12
    samples = items.samples
    for own, other in items.members.tolist():
        answers = [samples[k].ids[samples[k].trained].tolist() for k in (own, own ^ 1, other)]
        assert answers[2] not in answers[:2]


def test_what_cannot_be_compared_is_said_before_the_first_step(sessions: Sessions, tiny_model: Path) -> None:
    def refused(loss: str, records: list[Record], code: str = "TL-DATA-PAIR", **train: Any) -> DataError:
        made = Sessions(tiny_model, sessions.workspace, records)
        setting = TaskContext(made.recipe(loss, **train).train, made.tokenizer)

        def begin() -> None:
            PREFER.objective(load_model(tiny_model), PREFER.items(made.rows(slice(None)), setting), setting)

        with pytest.raises(DataError) as error:
            begin()
        assert error.value.code == code
        return error.value

    one, two = tokenize(sessions.tokenizer, PAIRS[:1]).lengths.tolist()
    told = str(refused("dpo", PAIRS[:1], token_budget=one + two - 1))
    assert f"{one} and {two} tokens" in told
    assert "judged" in str(refused("dpo", JUDGED[:3]))
    assert "two different rows" in str(refused("kto", JUDGED[:1], "TL-DATA-KTO"))
