from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tuneloop.data.batches.examples import Examples
from tuneloop.data.tokens.samples import Sample, Sequences
from tuneloop.methods.wrap import wrap
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import TrainPart
from tuneloop.tasks.loss import LossModel
from tuneloop.training.held_rows import MOST, HeldLosses
from tuneloop.training.loop import held_loss
from tuneloop.training.packing import rows
from tuneloop.training.row_losses import row_losses


def samples(count: int = 11) -> Sequences:
    rng = np.random.default_rng(0)
    lengths = [6 + 5 * n % 17 for n in range(count)]
    return Sequences.of(
        [
            Sample(rng.integers(3, 400, k, dtype=np.int32), np.arange(k) > k // 2, f"r{n}", True)
            for n, k in enumerate(lengths)
        ]
    )


def test_rows_are_measured_in_the_pass_that_measures_all(tiny_model: Path) -> None:
    """The loss is the number that it was, to the bit; and each row loses what it loses alone."""
    model = LossModel(wrap(load_model(tiny_model), TrainPart(method="full"), 0))
    examples, cpu = Examples.of(samples()), torch.device("cpu")
    total, each = row_losses(model, rows(examples, 40), examples, cpu)
    assert total == held_loss(model, rows(examples, 40), cpu)
    held = HeldLosses.of(total, each, examples)
    assert held.total / held.weight == total / float(examples.weights.sum())
    alone = [held_loss(model, rows(examples.take([k]), 40), cpu) / examples.weights[k] for k in range(len(examples))]
    order = [int(np.flatnonzero(examples.samples.row == row)[0]) for row in np.unique(examples.samples.row)]
    assert held.losses == pytest.approx([alone[k] for k in order], rel=1e-4)


def test_a_row_of_several_samples_is_one() -> None:
    every = samples(4)
    split = replace(every, row=np.array([0, 0, 1, 2], np.int32))
    examples = Examples(split, np.arange(4)[:, None], np.array([1.0, 3.0, 2.0, 2.0]))
    held = HeldLosses.of(20.0, np.array([1.0, 7.0, 6.0, 6.0]), examples)
    assert held.losses.tolist() == [2.0, 3.0, 3.0]
    assert held.weights.tolist() == [4.0, 2.0, 2.0]


def test_the_error_covers_the_mean_of_other_rows() -> None:
    """Of 400 draws of 60 rows, about 95 in 100 have the true mean within 1.96 errors."""
    rng, within = np.random.default_rng(0), 0
    for _ in range(400):
        weights = rng.integers(5, 60, 60).astype(float)
        losses = rng.gamma(4.0, 0.5, 60)
        held = HeldLosses(float((losses * weights).sum()), float(weights.sum()), losses, weights)
        assert held.error is not None
        within += abs(held.total / held.weight - 2.0) < 1.96 * held.error
    assert 0.91 < within / 400 < 0.98


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, math.nan], [1.0, math.inf]])
def test_what_cannot_be_told_is_no_number(losses: list[float]) -> None:
    assert HeldLosses(1.0, 1.0, np.array(losses), np.ones(len(losses))).error is None


def test_of_many_rows_some_are_written() -> None:
    n = 3 * MOST + 1
    some = HeldLosses(1.0, 1.0, np.arange(n) / 8, np.ones(n)).some()
    assert len(some["losses"]) == len(some["weights"]) == MOST
    assert some["losses"][:3] == [0.0, 0.375, 0.75]
    assert some["losses"][-1] > 0.99 * n / 8
