from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.conftest import tiny_folder
from tuneloop.data.batches.pack import pack
from tuneloop.data.tokens.encode import Sample
from tuneloop.methods.wrap import wrap
from tuneloop.model.backbone import unwrap
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import TrainPart
from tuneloop.tasks.logprobs import LogProbModel
from tuneloop.tasks.loss import LossModel, head_is_exact
from tuneloop.training.loop import held_loss

FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "granite", "cohere", "mistral"]
LENGTHS = (13, 4, 20)


def samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    out = []
    for n, length in enumerate(LENGTHS):
        trained = np.arange(length) >= length // 3
        trained[length // 2] = False  # two answers
        out.append(Sample(rng.integers(3, 128, length, dtype=np.int32), trained, f"r{n}", True))
    return out


def expected(model: nn.Module, every: Sequence[Sample]) -> Tensor:
    """Sum of the losses as transformers computes logits, one sample at a time with its own eager attention."""
    total = torch.zeros(())
    for sample in every:
        ids = torch.from_numpy(sample.ids).long()
        logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
        targets = torch.where(torch.from_numpy(sample.trained), ids, -100)
        total = total + cross_entropy(logits[:-1], targets[1:], ignore_index=-100, reduction="sum")
    return total


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("own_head", [False, True], ids=["our head", "own head"])
def test_loss_and_gradients_are_those_of_each_family(tmp_path: Path, family: str, tied: bool, own_head: bool) -> None:
    folder = tiny_folder(tmp_path / family, family, tie_word_embeddings=tied)
    train = TrainPart(method="full")
    ours, theirs = (wrap(load_model(folder, "float32"), train, 0) for _ in range(2))
    theirs.set_attn_implementation("eager")
    loss = LossModel(ours, own_head=own_head)(pack(samples())).total
    loss.backward()
    reference = expected(theirs, samples())
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-3, rtol=1e-3), name


@pytest.mark.parametrize("family", FAMILIES)
def test_our_head_is_that_of_the_family(tmp_path: Path, family: str) -> None:
    model = load_model(tiny_folder(tmp_path / family, family), "float32")
    assert head_is_exact(model, torch.arange(3, 12)[None])
    assert head_is_exact(wrap(model, TrainPart(), 0), torch.arange(3, 12)[None])


@pytest.mark.parametrize("family", ["recurrent_gemma", "falcon_h1"])
def test_a_head_that_scales_otherwise_is_found_and_left_to_the_model(tmp_path: Path, family: str) -> None:
    """Their configs call the scaling by names that we do not know."""
    model = load_model(tiny_folder(tmp_path / family, family), "float32")
    one = samples()[:1]
    with torch.no_grad():
        reference = expected(model, one).item()
        assert not head_is_exact(model, torch.arange(3, 12)[None])
        assert LossModel(model)(pack(one)).total.item() != pytest.approx(reference, rel=1e-3)
        assert LossModel(model, own_head=True)(pack(one)).total.item() == pytest.approx(reference, rel=1e-5)


@pytest.mark.parametrize(
    "targets", ["all-linear", ["lm_head"], ["q_proj", "lm_head"], ["embed_tokens", "v_proj"]], ids=str
)
def test_an_adapter_anywhere_gets_the_gradient_of_autograd(tmp_path: Path, targets: Any) -> None:
    folder = tiny_folder(tmp_path / "m", "qwen2", tie_word_embeddings=False)
    train = TrainPart.model_validate({"lora": {"rank": 2, "targets": targets}})
    ours, theirs = (wrap(load_model(folder, "float32"), train, 0) for _ in range(2))
    for model in (ours, theirs):
        torch.manual_seed(1)
        for _, p in model.named_parameters():
            if p.requires_grad:
                nn.init.normal_(p, std=0.1)
    loss = LossModel(ours)(pack(samples())).total
    loss.backward()
    reference = expected(theirs, samples())
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    trained = [(n, p) for n, p in ours.named_parameters() if p.requires_grad]
    assert trained
    others = dict(theirs.named_parameters())
    for name, p in trained:
        assert torch.allclose(p.grad, others[name].grad, atol=1e-3, rtol=1e-3), name
    assert all(p.grad is None for _, p in ours.named_parameters() if not p.requires_grad)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("own_head", [False, True])
def test_an_idle_pass_is_nothing_and_reaches_every_trained_weight(
    tmp_path: Path, method: str, tied: bool, own_head: bool
) -> None:
    """Gradient averaging waits for every weight on every rank: one that is left out hangs the run."""
    folder = tiny_folder(tmp_path / "m", "qwen2", tie_word_embeddings=tied)
    model = wrap(load_model(folder, "float32"), TrainPart(method=method), 0)
    loss = LossModel(model, own_head=own_head)(pack(samples()[:1], labelled=False)).total
    assert loss.item() == 0.0
    loss.backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, name
            assert not p.grad.any(), name


def test_an_even_guess_loses_what_is_called_chance(tmp_path: Path) -> None:
    model = load_model(tiny_folder(tmp_path / "m", "llama", tie_word_embeddings=False), "float32")
    loss, batch = LossModel(model), pack(samples())
    model.get_output_embeddings().weight.detach().zero_()
    assert loss(batch).total.item() / len(batch.targets) == pytest.approx(loss.chance)
    assert LogProbModel(model).chance is None


def test_micro_batches_add_up(tmp_path: Path) -> None:
    model = wrap(load_model(tiny_folder(tmp_path / "m", "llama"), "float32"), TrainPart(method="full"), 0)
    loss, every = LossModel(model), samples()
    whole = loss(pack(every)).total
    whole.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    parts = [loss(pack([s])).total for s in every]
    for part in parts:
        part.backward()
    assert sum(p.item() for p in parts) == pytest.approx(whole.item(), rel=1e-6)
    assert all(torch.allclose(p.grad, grads[n], atol=1e-4) for n, p in model.named_parameters())


def test_evaluation_gives_the_same_number_and_no_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneloop.tasks import loss as module

    model = LossModel(load_model(tiny_folder(tmp_path / "m", "gemma2"), "float32"))
    trained = model(pack(samples())).total.item()
    for chunk in (module.CHUNK, 128 * 3):
        monkeypatch.setattr(module, "CHUNK", chunk)
        with torch.no_grad():
            held = model(pack(samples())).total
        assert not held.requires_grad
        assert held.item() == pytest.approx(trained, rel=1e-6)


def test_only_positions_with_a_label_see_the_head(tmp_path: Path) -> None:
    model = load_model(tiny_folder(tmp_path / "m", "llama"), "float32")
    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda m, args, out: rows.append(args[0].shape[0]))
    LossModel(model)(pack(samples()))
    assert sum(rows) == sum(s.labels for s in samples())


def test_the_plain_model_is_inside_its_adapter(tiny_model: Path) -> None:
    base = load_model(tiny_model)
    assert unwrap(base) is base
    assert unwrap(wrap(base, TrainPart(), 0)) is base


def test_bfloat16_is_summed_in_float32(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m", "llama")
    full, half = (LossModel(load_model(folder, d)) for d in ("float32", "bfloat16"))
    with torch.no_grad():
        a, b = full(pack(samples())).total, half(pack(samples())).total
    assert b.dtype == torch.float32
    assert b.item() == pytest.approx(a.item(), rel=0.05)


def test_a_loss_around_a_model_leaves_its_dropout_as_it_is(tiny_model: Path) -> None:
    """A model that answers after its held-out loss was measured must not answer with dropout."""
    model = wrap(load_model(tiny_model), TrainPart.model_validate({"lora": {"dropout": 0.5}}), 0)
    model.eval()
    loss = LossModel(model)
    held_loss(loss, [pack(samples())], torch.device("cpu"))
    assert not any(m.training for m in model.modules())
    model.train()
    loss = LossModel(model)
    held_loss(loss, [pack(samples())], torch.device("cpu"))
    assert all(m.training for m in model.modules())
