from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig

from tests.conftest import tiny_folder
from tests.training.test_session import Sessions, lines
from tuneloop.base.errors import MachineError, ModelError
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import pack, pack_examples
from tuneloop.data.tokens.encode import Sample
from tuneloop.methods.wrap import wrap
from tuneloop.model.backbone import states
from tuneloop.model.blocks import blocks, lowest_trained
from tuneloop.model.frozen_cache import Frozen, frozen
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import TrainPart
from tuneloop.tasks.loss import LossModel
from tuneloop.training.frozen_policy import CacheQuestion, objection

LENGTHS = (19, 8, 11, 25, 40, 7)


def items() -> Examples:
    rng = np.random.default_rng(0)
    return Examples.of(
        [Sample(rng.integers(3, 128, n, dtype=np.int32), np.arange(n) > n // 3, f"r{n}", True) for n in LENGTHS]
    )


def model_of(tmp_path: Path, family: str, **more: Any) -> nn.Module:
    model = load_model(tiny_folder(tmp_path / family, family, num_hidden_layers=3, **more), "float32")
    return model.requires_grad_(False)


def train_from(model: nn.Module, block: int) -> nn.Module:
    """Block and all above it are trained."""
    for one in blocks(model)[block:]:  # type: ignore[arg-type]
        one.requires_grad_(True)
    return model


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "granite", "mistral"])
def test_losses_and_gradients_are_those_of_the_whole_model(tmp_path: Path, family: str, block: int) -> None:
    model = train_from(model_of(tmp_path, family), block)
    loss, data = LossModel(model).train(), items()

    def learned(*chosen: int) -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        value = loss(pack_examples(data, chosen)).total
        value.backward()
        return float(value.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    whole, gradients = learned(3, 0, 5)
    alone = sum(learned(k)[0] for k in (3, 0, 5))
    below = frozen(model)
    assert below is not None
    assert len(below.blocks) == block
    below.keep("train", data, tmp_path / "trunk", 64)
    assert below.exact("train", data)
    # What runs below is neither needed nor looked at any more.
    with torch.no_grad():
        for one in below.blocks:
            for parameter in one.parameters():
                parameter.mul_(float("nan"))
    with below.of("train"):
        kept, theirs = learned(3, 0, 5)
        one_by_one = sum(learned(k)[0] for k in (3, 0, 5))
    assert kept == pytest.approx(whole, abs=1e-4)
    assert one_by_one == pytest.approx(alone, abs=1e-4) == pytest.approx(kept, abs=1e-3)
    assert theirs.keys() == gradients.keys()
    assert all(torch.allclose(theirs[n], gradients[n], rtol=1e-3, atol=1e-5) for n in gradients)
    assert np.isnan(learned(3)[0]), "outside, rows are of other samples, and computed"


def bert(layers: int = 3) -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=128, hidden_size=32, num_hidden_layers=layers, num_attention_heads=4,
                        intermediate_size=64, max_position_embeddings=64)  # fmt: skip
    model: nn.Module = AutoModelForSequenceClassification.from_config(config)
    return model.requires_grad_(False)


@pytest.mark.parametrize("block", [1, 3])
def test_an_encoder_keeps_without_the_dropout_of_its_frozen_part(tmp_path: Path, block: int) -> None:
    model = train_from(bert(), block)
    model.classifier.requires_grad_(True)
    data, row = items(), pack([items().samples[4]])
    model.eval()
    own = states(model, row.input_ids, row.position_ids, row.segments)
    model.train()
    below = frozen(model)
    assert below is not None
    assert len(below.blocks) == block == lowest_trained(model)
    below.keep("train", data, tmp_path, 64, packing=False)
    assert below.exact("train", data, packing=False)
    for one in blocks(model)[block:]:  # type: ignore[arg-type]
        one.eval()
    assert torch.equal(states(model, row.input_ids, row.position_ids, row.segments), own), "no dropout below"
    with below.of("train"):
        kept = states(model, row.input_ids, row.position_ids, row.segments, (4,))
    assert torch.allclose(kept, own, atol=1e-5)
    below.release()
    model.train()
    assert all(m.training for m in model.modules())
    assert not torch.equal(states(model, row.input_ids, row.position_ids, row.segments), own)


def test_names_weights_and_modules_stay_what_they_are(tmp_path: Path) -> None:
    model = train_from(model_of(tmp_path, "llama"), 2)
    before = {n: (id(p), p.requires_grad) for n, p in model.named_parameters()}
    modules, keys = [n for n, _ in model.named_modules()], [vars(m).keys() for m in model.modules()]
    held = [set(k) for k in keys]
    below = frozen(model)
    assert below is not None
    assert {n: (id(p), p.requires_grad) for n, p in model.named_parameters()} == before
    assert [n for n, _ in model.named_modules()] == modules
    below.release()
    assert [set(vars(m)) for m in model.modules()] == held


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        (["layers.2"], 2), (["layers.1.mlp"], 1), (["layers.0"], 0), (["embed_tokens"], 0), (["model.norm"], 3),
        (["lm_head"], 3), (["lm_head", "layers.2"], 2), (["model.norm", "embed_tokens"], 0), ([], 3),
    ],
)  # fmt: skip
def test_the_lowest_trained_block(tmp_path: Path, trained: list[str], expected: int) -> None:
    model = model_of(tmp_path, "llama", tie_word_embeddings=False)
    for name, module in model.named_modules():
        if any(name.endswith(end) for end in trained):
            module.requires_grad_(True)
    assert lowest_trained(model) == expected


def test_a_tied_head_trains_the_embeddings_too(tmp_path: Path) -> None:
    model = model_of(tmp_path, "llama", tie_word_embeddings=True)
    model.lm_head.requires_grad_(True)
    assert lowest_trained(model) == 0
    assert frozen(model) is None


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({}, 0), ({"lora": {"targets": ["layers.2.self_attn.q_proj"]}}, 2), ({"method": "full"}, 0),
        ({"method": "ptuning_v2"}, 0), ({"method": "prompt_tuning"}, 0), ({"method": "freeze"}, 1),
        ({"method": "freeze", "checkpointing": True}, 1), ({"method": "freeze", "freeze": {"layers": 0, "head": True}}, 3),
    ],
    ids=str,
)  # fmt: skip
def test_where_methods_reach(tmp_path: Path, train: dict[str, Any], expected: int) -> None:
    folder = tiny_folder(tmp_path / "m", "llama", num_hidden_layers=3, tie_word_embeddings=False)
    model = wrap(load_model(folder, "float32"), TrainPart.model_validate(train), 0)
    below = frozen(model)
    assert (len(below.blocks) if below else 0) == expected


def test_what_takes_more_than_hidden_states_is_noticed(tmp_path: Path) -> None:
    """A block that adds what the lowest one left behind, beside what it is handed."""
    model = train_from(model_of(tmp_path, "llama"), 2)
    left: list[torch.Tensor] = []
    low, high = blocks(model)[0], blocks(model)[2]  # type: ignore[arg-type]
    low.register_forward_hook(lambda module, args, out: left.append(out))
    high.register_forward_hook(lambda module, args, out: out + left[-1][:, : out.shape[1]])
    below = frozen(model)
    assert below is not None
    below.keep("train", items(), tmp_path / "trunk", 64)
    assert not below.exact("train", items())


def test_what_was_kept_is_read_again_and_damage_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, folder = train_from(model_of(tmp_path, "llama"), 2), items(), tmp_path / "trunk"
    below = frozen(model)
    assert below is not None
    below.keep("train", data, folder, 64)
    file = folder / "train.states"
    first = file.read_bytes()
    assert len(first) == sum(LENGTHS) * 32 * 4
    assert json.loads((folder / "train.json").read_text())["bytes"] == len(first)
    assert sorted(p.name for p in folder.iterdir()) == ["train.json", "train.states"]
    computed: list[int] = []
    own = Frozen._reach

    def reach(self: Frozen, *args: Any) -> torch.Tensor:
        computed.append(1)
        return own(self, *args)

    monkeypatch.setattr(Frozen, "_reach", reach)
    below.keep("train", data, folder, 64)
    assert not computed, "it is there and whole"
    for damage in (first[:-4], b"x" + first[1:]):
        file.unlink()
        file.write_bytes(damage)
        below.keep("train", data, folder, 64)
        assert file.read_bytes() == first
    assert len(computed) == 4, "two rows each time"
    below.keep("train", data.take([0, 1]), folder, 64)
    assert file.stat().st_size == (19 + 8) * 32 * 4, "other samples"


@pytest.mark.parametrize(
    ("train", "asked", "why"),
    [
        ({}, CacheQuestion(2, 3, 1000, 10**6, 2), ""),
        ({}, CacheQuestion(2, 3, 1000, 10**6, 1), "there is one epoch"),
        ({}, CacheQuestion(0, 3, 0, 10**6, 2), "training reaches the lowest block"),
        ({}, CacheQuestion(1, 12, 1000, 10**6, 2), "frozen blocks: 1 of 12 only"),
        ({}, CacheQuestion(2, 3, 10**6, 10**6, 2), "1 MB would be kept and 1 MB are free on the disk"),
        ({"neftune_alpha": 5}, CacheQuestion(2, 3, 1000, 10**6, 2), "NEFTune"),
        ({"keep_trunk": "off"}, CacheQuestion(2, 3, 1000, 10**6, 2), "train.keep_trunk is off"),
        ({"keep_trunk": "on"}, CacheQuestion(1, 12, 10**6, 10**6, 1), ""),
    ],
    ids=str,
)
def test_when_it_is_kept(train: dict[str, Any], asked: CacheQuestion, why: str) -> None:
    said = objection(TrainPart.model_validate(train), asked)
    assert said.startswith(why) if why else not said


@pytest.mark.parametrize(
    ("train", "below"), [({"keep_trunk": "on"}, 0), ({"keep_trunk": "on", "neftune_alpha": 5}, 2)], ids=str
)
def test_asking_for_what_cannot_be_is_told(train: dict[str, Any], below: int) -> None:
    with pytest.raises(ModelError) as caught:
        objection(TrainPart.model_validate(train), CacheQuestion(below, 3, 1000, 10**6, 2))
    assert caught.value.code == "TL-MODEL-KEEP"


@pytest.fixture
def sessions(tiny_model: Path, tmp_path: Path) -> Sessions:
    return Sessions(tiny_model, tmp_path)


FREEZE = {"method": "freeze", "freeze": {"layers": 1}, "epochs": 2, "learning_rate": 1e-2}


def losses(run: Any) -> list[tuple[str, float]]:
    return [(k, m[k]) for m in lines(run.metrics) for k in ("loss", "eval_loss") if k in m]


def test_a_run_with_and_without(sessions: Sessions) -> None:
    kept, computed = sessions.run(**FREEZE), sessions.run(**FREEZE, keep_trunk="off")
    ours, theirs = losses(kept), losses(computed)
    assert [k for k, _ in ours] == [k for k, _ in theirs]
    assert [v for _, v in ours] == pytest.approx([v for _, v in theirs], abs=1e-4)
    said = [e for e in lines(kept.events) if e["event"] == "frozen_blocks"]
    assert [e["kept"] for e in said] == [True]
    assert said[0]["bytes"] == sum(len(s.ids) for s in [*sessions.samples, *sessions.held]) * 64 * 4
    assert [e["kept"] for e in lines(computed.events) if e["event"] == "frozen_blocks"] == [False]
    (off,) = [e for e in lines(computed.events) if e["event"] == "frozen_blocks"]
    assert off["why"] == off["why_in"]["en"] != off["why_in"]["zh"], "a report has both languages"
    assert not (kept.path / "trunk").exists(), "nothing is left to resume"
    assert (kept.path / "model" / "model.safetensors").stat().st_size == (
        computed.path / "model" / "model.safetensors"
    ).stat().st_size


@pytest.mark.parametrize("lost", [False, True], ids=["file there", "file lost"])
def test_a_resumed_run_is_the_same_bit_for_bit(
    sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    every = {**FREEZE, "save_strategy": "steps", "save_steps": 3, "save_total_limit": None}
    whole = sessions.run(**every)
    run, recipe = sessions.begin(**every)
    release, filled = Frozen.release, []

    def leave(self: Frozen) -> None:  # what a run that is killed leaves behind
        shutil.copytree(run.path / "trunk", tmp_path / "left", dirs_exist_ok=True)
        release(self)

    own = Frozen._reach

    def reach(self: Frozen, *args: Any) -> torch.Tensor:
        filled.append(1)
        return own(self, *args)

    monkeypatch.setattr(Frozen, "release", leave)
    sessions.go(run, recipe)
    shutil.rmtree(run.path / "model")
    for step in (6, 9, 10):
        shutil.rmtree(run.checkpoints / f"step-{step}")
    if not lost:
        shutil.copytree(tmp_path / "left", run.path / "trunk")
    monkeypatch.setattr(Frozen, "_reach", reach)
    assert sessions.go(run, recipe, resume=True).finished
    assert bool(filled) == lost
    assert losses(run) == losses(whole)
    files = [p / "model" / "model.safetensors" for p in (run.path, whole.path)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_looking_what_gradients_reach_draws_nothing(tiny_model: Path) -> None:
    """NEFTune's noise would be drawn once more by a run that is resumed, and the run would go another way."""
    train = TrainPart.model_validate({
        "neftune_alpha": 5.0, "lora": {"rank": 2, "targets": ["layers.1.self_attn.q_proj"]},
    })  # fmt: skip
    model = wrap(load_model(tiny_model), train, 0).train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert frozen(model) is not None
    assert torch.equal(torch.get_rng_state(), before)


def test_a_device_that_fails_is_told_with_its_checkpoint(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    run, recipe = sessions.begin(save_strategy="steps", save_steps=1)
    own, calls = LossModel.forward, []

    def forward(self: LossModel, *args: Any, **kwargs: Any) -> Any:
        calls.append(self.training)
        if sum(calls) == 3:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors …")
        return own(self, *args, **kwargs)

    monkeypatch.setattr(LossModel, "forward", forward)
    with pytest.raises(MachineError) as caught:
        sessions.go(run, recipe)
    assert caught.value.code == "TL-MACHINE-DEVICE"
    assert "illegal memory access" in str(caught.value)
    assert "step-2" in str(caught.value)
    monkeypatch.setattr(LossModel, "forward", own)
    assert sessions.go(run, recipe, resume=True).finished


@pytest.mark.parametrize("train", [{}, {"method": "freeze", "freeze": {"layers": 1}}], ids=str)
def test_recomputed_activations_give_the_same_gradients(tiny_model: Path, train: dict[str, Any]) -> None:
    """Although nothing asks the embeddings for a gradient."""

    def gradients(**more: Any) -> dict[str, torch.Tensor]:
        model = wrap(load_model(tiny_model, "float32"), TrainPart.model_validate({**train, **more}), 0)
        LossModel(model).train()(pack_examples(items(), [0, 1])).total.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plainly, again = gradients(), gradients(checkpointing=True)
    assert plainly.keys() == again.keys() != set()
    assert all(torch.allclose(again[n], plainly[n], atol=1e-6) for n in plainly)
