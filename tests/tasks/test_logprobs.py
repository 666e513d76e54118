from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.conftest import tiny_folder
from tuneloop.data.batches.pack import pack
from tuneloop.data.tokens.samples import Sample
from tuneloop.model.load import load_model
from tuneloop.tasks import logprobs
from tuneloop.tasks.logprobs import LogProbModel, by_sample

FAMILIES = ["llama", "gemma2", "granite", "cohere"]


def samples() -> list[Sample]:
    generator = np.random.default_rng(1)
    return [Sample(generator.integers(3, 120, n).astype(np.int32), np.arange(n) >= n // 2, "x", True) for n in (9, 6)]


def plainly(model: Any) -> torch.Tensor:
    """The same from the model's own logits, one sample at a time."""
    out = []
    for sample in samples():
        ids = torch.tensor(sample.ids.tolist())
        logs = torch.log_softmax(model(ids[None]).logits[0].float(), -1)
        at = torch.tensor(np.flatnonzero(sample.trained))
        out.append(logs[at - 1, ids[at]])
    return torch.cat(out)


def told(module: LogProbModel) -> torch.Tensor:
    row = pack(samples())
    return module.log_probs(row)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trained_head", [True, False])
@pytest.mark.parametrize("chunk", [1, 1 << 24])
def test_values_and_gradients_are_those_of_log_softmax(
    family: str, trained_head: bool, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK", chunk * 128 * 2 if chunk == 1 else chunk)
    model = load_model(tiny_folder(tmp_path / family, family, tie_word_embeddings=False))
    model.get_output_embeddings().requires_grad_(trained_head)
    module = LogProbModel(model)
    ours = told(module)
    weights = torch.linspace(-1, 2, len(ours))  # each position has a gradient of its own
    (ours * weights).sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    theirs = plainly(model)
    (theirs * weights).sum().backward()
    assert torch.allclose(ours, theirs, atol=2e-5)
    wanted = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert set(grads) == set(wanted)
    assert ("lm_head.weight" in grads) is trained_head
    for name, grad in wanted.items():
        assert torch.allclose(grads[name], grad, rtol=1e-3, atol=1e-4 * float(grad.abs().max())), name
    with torch.no_grad():
        assert torch.allclose(told(module), ours, atol=1e-6)


def test_the_dropout_of_an_adapted_head_is_the_same_both_ways(tmp_path: Path) -> None:
    """The gradient along a direction is what the loss changes by, dropout drawn alike."""
    model: Any = load_model(tiny_folder(tmp_path / "m", "llama", tie_word_embeddings=False))
    model = get_peft_model(model, LoraConfig(r=2, lora_dropout=0.5, target_modules=["lm_head"])).train()
    (up,) = (p for n, p in model.named_parameters() if "lora_B" in n)
    module, way = LogProbModel(model).train(), torch.randn(up.shape) * 0.1

    def total() -> torch.Tensor:
        torch.manual_seed(3)
        return told(module).sum()

    for k in range(2):  # also where the generator has moved on before the way back
        up.grad = None
        loss = total()
        torch.rand(k * 7)
        after = torch.get_rng_state()
        loss.backward()
        assert torch.equal(torch.get_rng_state(), after)
        slope = float((up.grad * way).sum())
        with torch.no_grad():
            up.add_(way * 1e-2)
            more = total()
            up.sub_(way * 2e-2)
            less = total()
            up.add_(way * 1e-2)
        assert slope == pytest.approx(float(more - less) / 2e-2, rel=2e-2)


def test_a_tied_head_gets_both_gradients(tmp_path: Path) -> None:
    model = load_model(tiny_folder(tmp_path / "m", "llama", tie_word_embeddings=True))
    told(LogProbModel(model)).sum().backward()
    weight = model.get_input_embeddings().weight
    ours = weight.grad.clone()  # type: ignore[union-attr, operator]
    model.zero_grad()
    plainly(model).sum().backward()
    assert torch.allclose(ours, weight.grad, atol=1e-4 * float(ours.abs().max()))  # type: ignore[arg-type]


def test_the_models_own_head_gives_the_same(tmp_path: Path) -> None:
    model = load_model(tiny_folder(tmp_path / "m", "llama"))
    assert torch.allclose(told(LogProbModel(model, own_head=True)), told(LogProbModel(model)), atol=1e-5)


def test_idle_reaches_every_weight_and_changes_none(tmp_path: Path) -> None:
    model = load_model(tiny_folder(tmp_path / "m", "llama", tie_word_embeddings=False))
    row = pack(samples(), labelled=False)
    loss = LogProbModel(model).idle(row)
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_each_label_counts_for_its_sample() -> None:
    row = pack(samples())
    sums, counts = by_sample(torch.ones(len(row.targets)), row.positions, row.segments)
    assert sums.tolist() == counts.tolist() == [5, 3]
    edge = by_sample(torch.tensor([2.0, 3.0]), torch.tensor([3, 4]), (4, 2))  # the last of one, the first of the next
    assert [x.tolist() for x in edge] == [[2, 3], [1, 1]]


@pytest.mark.parametrize("trunk", [torch.float32, torch.bfloat16], ids=str)
def test_a_trained_head_is_passed_back_in_the_type_it_was_passed_in(
    trunk: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backward pass comes after autocast was left, as a loop's does."""
    model = load_model(tiny_folder(tmp_path / "m", "llama", tie_word_embeddings=False))
    model.model.to(trunk)
    module, types = LogProbModel(model), []
    model.get_output_embeddings().register_forward_hook(lambda head, given, out: types.append(out.dtype))
    grads = []
    for rows in (2, 1 << 20):
        monkeypatch.setattr(logprobs, "CHUNK", rows * 128)
        with torch.autocast("cpu", torch.bfloat16):
            ours = told(module)
        (ours * torch.linspace(-1, 2, len(ours))).sum().backward()
        grads.append(model.get_output_embeddings().weight.grad.clone())
        model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        theirs = plainly(model)
    (theirs * torch.linspace(-1, 2, len(theirs))).sum().backward()
    wanted = model.get_output_embeddings().weight.grad
    assert set(types) == {torch.bfloat16}
    for grad in grads:
        assert grad.dtype == torch.float32
        assert torch.allclose(grad, wanted, atol=2e-2 * float(wanted.abs().max()))
