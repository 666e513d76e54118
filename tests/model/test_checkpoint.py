from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tuneloop.base.errors import RunError
from tuneloop.data.batches.pack import pack
from tuneloop.data.tokens.encode import Sample
from tuneloop.methods.wrap import wrap
from tuneloop.model import checkpoint
from tuneloop.model.checkpoint import State
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import TrainPart
from tuneloop.tasks.loss import LossModel
from tuneloop.training.optim import optimizer_for, scheduler_for

FILES = ["trained.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", "manifest.json"]


class Part:
    """Model, optimizer and schedule of a run of twelve steps, and its steps."""

    def __init__(self, folder: Path, **train: Any) -> None:
        settings = TrainPart.model_validate({"weight_decay": 0.1, "learning_rate": 0.01, **train})
        self.model = LossModel(wrap(load_model(folder), settings, 0))
        self.model.train()
        self.optimizer = optimizer_for(self.model, settings)
        self.scheduler = scheduler_for(self.optimizer, settings, 12)

    def run(self, *steps: int) -> list[float]:
        out = []
        for k in steps:
            rng = np.random.default_rng(k)
            ids = rng.integers(3, 400, 20, dtype=np.int32)
            loss = self.model(pack([Sample(ids, np.arange(20) > 5, "x", True)])).total
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            out += [loss.item(), random.random(), torch.rand(()).item()]
        return out

    def save(self, folder: Path, step: int, keep: int | None = None) -> Path:
        return checkpoint.save(folder, State(step), self.model, self.optimizer, self.scheduler, keep=keep)

    def restore(self, path: Path) -> State:
        return checkpoint.restore(path, self.model, self.optimizer, self.scheduler)


class Small(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2)


def small(folder: Path, *steps: int, keep: int | None = None) -> None:
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    for step in steps:
        model.linear(torch.ones(3)).sum().backward()
        optimizer.step()
        scheduler.step()
        checkpoint.save(folder, State(step), model, optimizer, scheduler, keep=keep)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("train", [{"method": "full"}, {"lora": {"rank": 2, "dropout": 0.3}}], ids=["full", "lora"])
def test_a_run_goes_on_as_if_it_had_never_stopped(tiny_model: Path, tmp_path: Path, train: dict[str, Any]) -> None:
    whole = Part(tiny_model, **train)
    random.seed(5)
    torch.manual_seed(5)
    whole.run(0, 1, 2)
    path = whole.save(tmp_path, 3)
    expected = whole.run(3, 4, 5)

    torch.manual_seed(99)
    random.seed(99)
    random.gauss(0, 1)  # leaves half a pair behind in the generator
    again = Part(tiny_model, **train)
    again.run(7)
    assert again.restore(path) == State(3)
    assert again.run(3, 4, 5) == expected
    for (n, a), (_, b) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), n
    assert again.scheduler.state_dict() == whole.scheduler.state_dict()
    ours, theirs = again.optimizer.state_dict(), whole.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for i, entry in theirs["state"].items():
        assert all(torch.equal(ours["state"][i][k], v) for k, v in entry.items())


def test_parameters_in_several_groups_get_their_own_state_back(tiny_model: Path, tmp_path: Path) -> None:
    """The optimizer counts parameters in the order of its groups, which is not that of the model."""
    one = Part(tiny_model, method="full")
    assert len(one.optimizer.param_groups) == 2
    one.run(0, 1)
    path = one.save(tmp_path, 2)
    other = Part(tiny_model, method="full")
    other.restore(path)
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        for key, value in one.optimizer.state[p].items():
            assert torch.equal(other.optimizer.state[q][key], value)
    assert [g["weight_decay"] for g in other.optimizer.param_groups] == [0.1, 0.0]
    assert other.optimizer.param_groups[0]["betas"] == one.optimizer.param_groups[0]["betas"]


def test_only_what_is_trained_is_kept_and_nothing_is_pickled(tiny_model: Path, tmp_path: Path) -> None:
    part = Part(tiny_model, lora={"rank": 2})
    part.run(0)
    path = part.save(tmp_path, 1)
    assert path == tmp_path / "step-1"
    assert names(path) == sorted(FILES)
    assert names(tmp_path) == ["step-1"]
    assert set(checkpoint.trained_weights(part.model)) == {
        n for n, p in part.model.named_parameters() if p.requires_grad
    }
    assert (path / "trained.safetensors").stat().st_size < 60_000


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "gone"])
def test_a_harmed_checkpoint_is_not_taken_and_the_one_before_is(tmp_path: Path, file: str, harm: str) -> None:
    small(tmp_path, 2, 4, 6)
    assert checkpoint.newest(tmp_path) == tmp_path / "step-6"
    path = tmp_path / "step-6" / file
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0x20]) + content[middle + 1 :]
        path.write_bytes({"flip": flipped, "cut": content[:-1], "empty": b""}[harm])
    assert not checkpoint.verified(tmp_path / "step-6")
    assert checkpoint.newest(tmp_path) == tmp_path / "step-4"


def test_a_draft_is_no_checkpoint_and_goes_with_the_next_save(tmp_path: Path) -> None:
    small(tmp_path, 2)
    os.rename(tmp_path / "step-2", tmp_path / ".draft-4-123")
    small(tmp_path, 2)
    (tmp_path / ".draft-6-99").mkdir()
    (tmp_path / "step-x").mkdir()
    assert checkpoint.newest(tmp_path) == tmp_path / "step-2"
    small(tmp_path, 3)
    assert names(tmp_path) == ["step-2", "step-3", "step-x"]


def test_nothing_is_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "none") is None
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "manifest.json").write_text("{}", encoding="utf-8")
    assert checkpoint.newest(tmp_path) is None


def test_the_oldest_go(tmp_path: Path) -> None:
    small(tmp_path, 9, 10, 11, keep=2)
    assert names(tmp_path) == ["step-10", "step-11"]
    small(tmp_path, 100, keep=1)
    assert names(tmp_path) == ["step-100"]
    small(tmp_path, 101, 102, 103)
    assert len(names(tmp_path)) == 4


def test_the_best_one_stays_beside_the_newest(tmp_path: Path) -> None:
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    kept = []
    for step, best in enumerate((1, 2, 2, 2, 5), 1):
        checkpoint.save(tmp_path, State(step), model, optimizer, scheduler, keep=1, spare=best)
        kept.append(names(tmp_path))
    assert kept == [["step-1"], ["step-2"], ["step-2", "step-3"], ["step-2", "step-4"], ["step-5"]]


def test_the_weights_alone_can_be_taken_back(tmp_path: Path) -> None:
    small(tmp_path, 1)
    model, other = Small(), Small(4)
    loaded = checkpoint.restore_weights(tmp_path / "step-1", model)
    assert loaded.keys() == {"linear.weight", "linear.bias"}
    assert torch.equal(model.linear.weight, load_file(tmp_path / "step-1" / "trained.safetensors")["linear.weight"])
    with pytest.raises(RunError):
        checkpoint.restore_weights(tmp_path / "step-1", other)


def test_a_broken_one_never_pushes_a_good_one_out(tmp_path: Path) -> None:
    """The run went on from step 2 because step 8 is broken; what it saves now must stay."""
    small(tmp_path, 2, 8)
    (tmp_path / "step-8" / "state.json").write_text("{}", encoding="utf-8")
    assert checkpoint.newest(tmp_path) == tmp_path / "step-2"
    small(tmp_path, 3, keep=1)
    assert checkpoint.newest(tmp_path) == tmp_path / "step-3"
    small(tmp_path, 8, keep=1)
    assert names(tmp_path) == ["step-8"]
    assert checkpoint.verified(tmp_path / "step-8")


def test_saving_a_step_again_leaves_it(tmp_path: Path) -> None:
    small(tmp_path, 2)
    before = (tmp_path / "step-2" / "manifest.json").stat().st_mtime_ns
    small(tmp_path, 2)
    assert (tmp_path / "step-2" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "change", [{"lora": {"rank": 4}}, {"method": "full"}, {"lora": {"rank": 2, "targets": ["q_proj"]}}], ids=str
)
def test_weights_that_do_not_fit_are_refused_before_anything_changes(
    tiny_model: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    part = Part(tiny_model, lora={"rank": 2})
    part.run(0)
    path = part.save(tmp_path, 1)
    other = Part(tiny_model, **change)
    before = {n: p.clone() for n, p in other.model.named_parameters()}
    with pytest.raises(RunError) as caught:
        other.restore(path)
    assert caught.value.code == "TL-RUN-CHECKPOINT"
    assert all(torch.equal(p, before[n]) for n, p in other.model.named_parameters())


def test_the_state_says_with_what_it_was_made(tmp_path: Path) -> None:
    small(tmp_path, 5)
    state = json.loads((tmp_path / "step-5" / "state.json").read_text(encoding="utf-8"))
    assert state["step"] == 5
    assert state["torch"] == torch.__version__
    assert state["threads"] == torch.get_num_threads()
