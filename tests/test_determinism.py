"""Sums in the same order: the degree that torch is set to, where it matters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tuneloop.model import determinism
from tuneloop.proof import subject, training
from tuneloop.proof.training import Ground


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


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(("family", "method"), [("llama", "lora"), ("llama", "full"), ("deepseek_v3", "lora")])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_runs_so(family: str, method: str, checkpointing: bool, tmp_path: Path) -> None:
    """No operation of a step is one that torch refuses to make deterministic."""
    ground = Ground(tmp_path, subject.model_folder(tmp_path / family, family), longest=200)
    assert "bit for bit" in training.combination(ground, method, "chat", checkpointing=checkpointing)
