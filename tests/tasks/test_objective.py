"""What every task's objective gives: a sum, each example's share of it, and means that are told beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks.shares import CASES, Case
from tuneloop.data.batches.pack import pack_examples


@pytest.mark.parametrize("name", CASES)
def test_the_sum_is_that_of_what_each_example_loses(name: str, tiny_model: Path) -> None:
    case = Case(name, tiny_model)
    objective, examples = case.objective.eval(), case.examples
    with torch.no_grad():
        together = objective(pack_examples(examples, range(len(examples))))
        alone = [objective(pack_examples(examples, [k])) for k in range(len(examples))]
    assert together.per_item.shape == (len(examples),)
    assert together.per_item.sum().item() == pytest.approx(together.total.item(), rel=1e-5)
    for k, losses in enumerate(alone):
        assert losses.per_item.shape == (1,)
        assert together.per_item[k].item() == pytest.approx(losses.total.item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_shares_and_metrics_carry_no_gradient_and_the_sum_does(name: str, tiny_model: Path) -> None:
    case = Case(name, tiny_model)
    objective = case.objective.train()
    losses = objective(pack_examples(case.examples, range(len(case.examples))))
    assert losses.total.requires_grad
    assert not losses.per_item.requires_grad
    assert losses.per_item.dtype == torch.float32
    if objective.metrics:
        assert losses.metrics.shape == (len(objective.metrics),)
        assert not losses.metrics.requires_grad
    else:
        assert losses.metrics is None


@pytest.mark.parametrize("name", CASES)
def test_a_pass_of_an_idle_rank_loses_nothing_and_reaches_each_trained_weight(name: str, tiny_model: Path) -> None:
    case = Case(name, tiny_model)
    objective: Any = case.objective.train()
    losses = objective(pack_examples(case.examples, [0], labelled=False))
    assert losses.total.item() == 0
    assert losses.per_item.numel() == 0
    losses.total.backward()
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)
