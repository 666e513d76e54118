"""Every method with every task: trained, killed, resumed, read by plain tools, exported, and asked in `tuneloop chat`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.lives import KIND, SAVED, Ground, Plain, assert_same, events, metrics, model_folder, resumed
from tuneloop import pipeline
from tuneloop.base.errors import ModelError, RunError
from tuneloop.cli.main import app
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import pack_examples
from tuneloop.data.tokens.encode import tokenize
from tuneloop.data.tokens.templates import encode, render
from tuneloop.data.version.dataset import Dataset
from tuneloop.inference.trained import Trained, load_trained
from tuneloop.methods.table import METHODS
from tuneloop.runs.run import Run
from tuneloop.tasks.chat import CHAT
from tuneloop.tasks.task import SplitView

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

DECODERS = ("llama", "qwen2", "qwen3", "deepseek_v3", "gemma3_text")
REFUSED = {
    ("deepseek_v3", "ptuning_v2", "chat"),
    *(("bert", m, "classify_prompt") for m in ("ptuning_v2", "prompt_tuning")),
}
"""Latent attention has keys and values of different widths, and PEFT puts nothing before a model of masked words."""
ALL = [
    *(("llama", method, task) for task in KIND for method in METHODS),
    *((family, method, "chat") for family in DECODERS[1:] for method in METHODS),
    *(("bert", method, task) for task in ("classify", "classify_prompt") for method in METHODS),
]
QUICK = {
    ("llama", "qlora", "prefer"), ("llama", "ptuning_v2", "classify"), ("llama", "freeze", "reward"),
    ("llama", "prompt_tuning", "text"), ("qwen3", "full", "chat"), ("bert", "lora", "classify_prompt"),
}  # fmt: skip
"""A cross-section that the usual suite runs: each method, task and shape once; the others are for `make test-slow`."""
QUESTION = "was it good ?"
CASES = [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in ALL if case not in REFUSED]


@pytest.fixture(scope="module")
def ground_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ground]:
    made: dict[str, Ground] = {}

    def of(family: str) -> Ground:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = Ground(folder, model_folder(folder / "model", family))
        return made[family]

    return of


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plain]:
    reader = Plain(tmp_path_factory.mktemp("plain"))
    yield reader
    reader.close()


def held(trained: Trained, dataset: Dataset) -> Examples:
    """The held-out rows as the run's task sees them."""
    records = dataset.records("validation")
    return trained.task.items(SplitView(tokenize(trained.tokenizer, records), lambda: records), trained.setting)


@torch.no_grad()
def ours(trained: Trained, items: Examples) -> list[torch.Tensor]:
    """What the task makes of each sample in our packed way: its loss, its scores, or the scores of its labels."""
    writes = trained.task.generates
    samples = Examples.of(items.samples) if writes else items
    module = (CHAT if writes else trained.task).objective(trained.model, samples, trained.setting)
    module.eval()
    row = pack_examples(samples, range(len(samples)))
    if not writes:
        return list(module.scores(row))  # type: ignore[operator]
    return [module(pack_examples(samples, [k])).total for k in range(len(samples))]


@torch.no_grad()
def theirs(trained: Trained, items: Examples, logits: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The same from the logits of plain transformers and PEFT."""
    samples, out = items.samples, []
    for k in range(len(samples)):
        one, said = samples[k], logits[f"{k}"]
        said = said[-len(one.ids) :] if said.ndim == 2 else said  # PEFT gives the logits of a prompt's vectors as well
        if trained.head.kind == "classifier":
            out.append(said)
        elif not trained.task.generates:
            module: Any = trained.task.objective(trained.model, items, trained.setting)
            out.append(said[module.place, module.columns] @ module.share)
        else:
            at = torch.from_numpy(one.trained.copy()).nonzero().flatten()
            at = at[at > 0]
            ids = torch.from_numpy(one.ids.astype("int64"))
            out.append(cross_entropy(said[at - 1], ids[at], reduction="sum"))
    return out


def close(a: list[torch.Tensor], b: list[torch.Tensor], *, within: float = 1e-4) -> None:
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape
        assert float((x - y).abs().max()) <= within * max(1.0, float(y.abs().max()))


def asked(ref: Path, capsys: pytest.CaptureFixture[str], question: str) -> str:
    """What `tuneloop chat REF --once` prints."""
    capsys.readouterr()
    assert not app(["chat", str(ref), "--once", question, "--max-tokens", "8"], standalone_mode=False)
    return capsys.readouterr().out.strip()


def answers(
    trained: Trained, ref: Path, logits: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    """In `tuneloop chat` a model that writes says what plain generation says; another one names labels, or a score."""
    scores = not trained.task.generates and trained.task.classes is None
    answer = asked(ref, capsys, "was it good ?\tPut it into boiling water." if scores else QUESTION)
    if trained.task.classes is not None:
        assert sorted(word for word in answer.split() if word in trained.setting.labels) == ["bad", "good"]
        assert "%" in answer
    elif scores:
        assert math.isfinite(float(answer))
    else:
        said = trained.tokenizer.decode(logits["said"], skip_special_tokens=True)
        assert answer == said.rstrip("\ufffd").strip()  # half a character at the end is held back


@pytest.mark.parametrize(("family", "method", "task"), CASES)
def test_a_life(
    family: str, method: str, task: str, ground_of: Callable[[str], Ground], plain: Plain, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ground = ground_of(family)
    recipe = ground.recipe(method, task)
    whole, run = ground.lived(recipe, task)
    assert resumed(run) == [SAVED]
    assert_same(whole, run)

    dataset, _ = ground.prepared(recipe, task)
    trained, result = load_trained(run.path), run.trained_folder()
    assert result is not None
    items = held(trained, dataset)
    ids = [one.ids.tolist() for one in items.samples]
    kind, labels = trained.head.kind, len(trained.head.labels)
    prompt = encode(
        trained.tokenizer, [render(trained.tokenizer, [{"role": "user", "content": QUESTION}], prompt=True)]
    )[0]
    read = plain.ask(result, ids, kind, labels=labels, bits=METHODS[method].quantize, prompt=prompt)
    close(theirs(trained, items, read), ours(trained, items))
    answers(trained, run.path, read, capsys)

    if not trained.task.generates:
        measured = pipeline.evaluate(run)
        assert measured["before"]["loss"] != measured["after"]["loss"]

    target = tmp_path / "merged"
    if METHODS[method].adapter and not METHODS[method].mergeable:
        with pytest.raises(RunError) as refused:
            pipeline.export(run.path, target)
        assert refused.value.code == "TL-RUN-UNMERGEABLE"
        return
    assert pipeline.export(run.path, target).passed
    merged = load_trained(run.path)  # as it was trained and measured, in 4 bits where the method says so
    again = plain.ask(target, ids, kind, labels=labels, prompt=prompt)
    close(theirs(merged, items, again), ours(merged, items))
    if task != "classify_prompt":  # the folder is a plain model of words, and does not know which stand for labels
        answers(merged, target, again, capsys)


@pytest.mark.parametrize(("family", "method", "task"), sorted(REFUSED))
def test_what_makes_no_sense_is_refused_before_the_first_step(
    family: str, method: str, task: str, ground_of: Callable[[str], Ground], tmp_path: Path
) -> None:
    ground = ground_of(family)
    recipe = ground.recipe(method, task)
    dataset, plan = ground.prepared(recipe, task)
    with pytest.raises(ModelError) as refused:
        pipeline.train(recipe, dataset, workspace=tmp_path, foreseen=plan)
    assert refused.value.code == "TL-MODEL-METHOD"
    assert not list((tmp_path / "runs").glob("*"))


def test_a_kept_trunk_outlives_kills(ground_of: Callable[[str], Ground]) -> None:
    """Killed in the second epoch and in the third; meanwhile what was kept is damaged, and must be computed again."""

    def damage(run: Run) -> None:
        states = run.path / "trunk" / "train.states"
        data = bytearray(states.read_bytes())
        data[len(data) // 2] ^= 1
        states.write_bytes(data)

    ground = ground_of("llama")
    recipe = ground.recipe("freeze", "chat", max_steps=None, epochs=3, keep_trunk="on")
    recipe = recipe.model_copy(update={"name": "kept"})
    whole, run = ground.lived(recipe, "chat", kills=(5, 8), between=damage)
    assert resumed(run) == [4, 8]
    assert [told["kept"] for told in events(run, "frozen_blocks")] == [True] * 3
    assert max(line["epoch"] for line in metrics(whole)) == 3
    assert_same(whole, run)
    assert not (run.path / "trunk").exists()
