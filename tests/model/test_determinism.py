"""Sums in the same order: the degree that torch is set to, where it matters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaMLP

from tuneloop.model import determinism
from tuneloop.selftest import subject, training
from tuneloop.selftest.training import Ground
from tuneloop.training import state


def degree() -> str:
    if not torch.are_deterministic_algorithms_enabled():
        return "any"
    return "warn" if torch.is_deterministic_algorithms_warn_only_enabled() else "strict"


@pytest.fixture
def asked() -> Iterator[None]:
    """As training on a card sets it."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


class Seen(torch.autograd.Function):
    """Notes the degree on both ways."""

    log: ClassVar[list[str]] = []

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        Seen.log.append(degree())
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors  # computed again where it was not kept
        Seen.log.append(degree())
        return grads[0] * 2 * x


def passes(*, again: bool) -> list[str]:
    """The degrees of a forward and a backward pass; with `again` the forward pass is computed again within that."""
    Seen.log.clear()
    x = torch.ones(2, requires_grad=True)
    y = checkpoint(Seen.apply, x, use_reentrant=False, context_fn=determinism.recomputing) if again else Seen.apply(x)
    with determinism.backward():
        y.sum().backward()
    return list(Seen.log)


@pytest.mark.usefixtures("asked")
def test_strict_in_backward_passes_alone() -> None:
    assert passes(again=False) == ["warn", "strict"]
    assert degree() == "warn"


@pytest.mark.usefixtures("asked")
def test_a_forward_pass_computed_again_may_do_what_it_did() -> None:
    assert passes(again=True) == ["warn", "warn", "strict"]


def test_nothing_is_set_where_nothing_was_asked_for() -> None:
    determinism.settle(torch.device("cpu"))
    assert passes(again=True) == ["any"] * 3


@pytest.mark.usefixtures("asked")
def test_the_degree_is_put_back_when_a_pass_fails() -> None:
    with pytest.raises(ZeroDivisionError), determinism.backward():
        raise ZeroDivisionError
    assert degree() == "warn"


class Unordered(torch.autograd.Function):
    """An operation that torch refuses to run in a fixed order on its way back, as cumsum of floats on a card."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0].clone().put_(torch.tensor([0]), grads[0].flatten()[:1])


@pytest.mark.usefixtures("asked")
def test_what_cannot_be_strict_is_found_and_trained_without() -> None:
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="put_"), determinism.backward():
        Unordered.apply(x).sum().backward()
    assert determinism.probe(lambda: Unordered.apply(x).sum()) == "put_"
    assert passes(again=False) == ["warn", "warn"]
    with pytest.raises(RuntimeError, match="another"):
        determinism.probe(lambda: Failing.apply(x).sum())
    assert determinism.probe(lambda: x.sum()) == ""
    assert passes(again=False) == ["warn", "strict"]


class Failing(torch.autograd.Function):
    """Fails on its way back for another reason."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("another")


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("task", ["chat", pytest.param("reward", marks=pytest.mark.slow)])
def test_a_model_that_cannot_be_strict_is_trained_and_says_so(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: Unordered.apply(own(self, x)))
    monkeypatch.setattr(state, "install", lambda model: None)
    ground = Ground(tmp_path, subject.model_folder(tmp_path / "llama"), longest=200)
    assert "bit for bit" in training.combination(ground, "lora", task)
    assert "put_ adds up in any order on this card" in capsys.readouterr().err


def test_on_a_card_attention_without_a_fixed_order_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **more: asked.append((a, more)))
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        with warnings.catch_warnings():
            determinism.settle(torch.device("cuda"))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert asked == [((True,), {"warn_only": True})]


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("family", "method", "checkpointing"),
    [
        ("llama", "full", True),
        ("deepseek_v3", "lora", False),
        pytest.param("llama", "full", False, marks=pytest.mark.slow),
        pytest.param("llama", "lora", False, marks=pytest.mark.slow),
        pytest.param("llama", "lora", True, marks=pytest.mark.slow),
        pytest.param("deepseek_v3", "lora", True, marks=pytest.mark.slow),
    ],
)
def test_training_runs_so(family: str, method: str, checkpointing: bool, tmp_path: Path) -> None:
    """No operation of a step is one that torch refuses to make deterministic."""
    ground = Ground(tmp_path, subject.model_folder(tmp_path / family, family), longest=200)
    assert "bit for bit" in training.combination(ground, method, "chat", checkpointing=checkpointing)
