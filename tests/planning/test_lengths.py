"""Which lengths fit a memory, and what each costs."""

from __future__ import annotations

import numpy as np
import pytest

from tuneloop.planning.lengths import Option, options
from tuneloop.recipe.schema import TrainPart

LENGTHS = np.array([100, 200, 3000, 5000, 9000])


def need(train: TrainPart, tokens: int) -> float:
    return tokens / (4000 if train.checkpointing else 1000)


@pytest.mark.parametrize("each", [1, 2])
def test_as_it_is_and_with_checkpointing(each: int) -> None:
    one, two = options(LENGTHS, each, TrainPart(), need, 1.3 * each, checkpointing=True)
    assert (one.length, one.rows, one.of) == (1280, 3, 5)
    assert one.settings == {"prepare.max_length": 1280, "train.token_budget": 1280 * each}
    assert (two.length, two.rows) == (5184, 1)
    assert two.settings["train.checkpointing"] is True
    assert two.line.endswith("train.checkpointing: true")
    assert two.assignments[-1] == "train.checkpointing=true"


def test_what_costs_no_fewer_rows_is_not_offered() -> None:
    (one,) = options(LENGTHS, 1, TrainPart(), need, 9.5, checkpointing=True)
    assert (one.length, one.rows) == (9000, 0)
    assert options(LENGTHS, 1, TrainPart(), need, 0.01, checkpointing=False) == []
    (only,) = options(LENGTHS, 1, TrainPart(checkpointing=True), need, 1.3, checkpointing=True)
    assert (only.length, "train.checkpointing" in only.settings) == (5184, False)


def test_an_option_says_what_it_costs() -> None:
    said = str(Option(128, 3, 9, {"prepare.max_length": 128}))
    assert said == "prepare.max_length: 128 (3 of 9 training rows are longer)"
