from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import pack_examples
from tuneloop.data.tokens.samples import Sample, Sequences
from tuneloop.training.row_sources import RowSources


def examples(rows: list[int], *, together: int = 1) -> Examples:
    """An example for every so many samples; sample k is of record rows[k] and has k + 1 label tokens."""
    every = Sequences.of(
        [Sample(np.arange(k + 3, dtype=np.int32), np.arange(k + 3) > 1, f"r{k}", True) for k in range(len(rows))]
    )
    every = replace(every, row=np.array(rows, np.int32))
    members = np.arange(len(rows)).reshape(-1, together)
    return Examples(every, members, every.labels[members].sum(1).astype(np.float64))


def test_the_loss_of_a_file_is_the_mean_over_its_own_label_tokens() -> None:
    one = examples([0, 1, 2, 3, 4])
    sources = RowSources.of(one, ["x/a.jsonl", "x/b.jsonl", "x/a.jsonl", "x/c.jsonl", "x/b.jsonl"])
    batches = [pack_examples(one, [2, 0]), pack_examples(one, [4])]
    lost = [torch.tensor([6.0, 2.0]), torch.tensor([10.0])]
    assert sources.means(batches, lost) == {"a.jsonl": pytest.approx(8 / 4), "b.jsonl": pytest.approx(10 / 5)}


def test_a_row_that_was_split_or_repeated_stays_of_its_file() -> None:
    one = examples([0, 0, 1, 2])
    sources = RowSources.of(one, ["a", "b", "b"])
    assert sources.of_sample.tolist() == [0, 0, 1, 1]


def test_pairs_count_by_their_example() -> None:
    pairs = examples([0, 0, 1, 1], together=2)
    sources = RowSources.of(pairs, ["a", "b"])
    lost = [torch.tensor([7.0, 3.0])]
    assert sources.means([pack_examples(pairs, [1, 0])], lost) == {"a": pytest.approx(3 / 3), "b": pytest.approx(7 / 7)}


def test_an_idle_ranks_pass_tells_nothing() -> None:
    one = examples([0, 1])
    sources = RowSources.of(one, ["a", "b"])
    idle = pack_examples(one, [0], labelled=False)
    assert sources.means([idle], [torch.zeros(0)]) == {}
    assert sources.means([idle, pack_examples(one, [1])], [torch.zeros(0), torch.tensor([4.0])]) == {
        "b": pytest.approx(2.0)
    }


def test_files_of_one_name_are_told_by_their_paths() -> None:
    assert RowSources.of(examples([0, 1]), ["x/a.csv", "y/a.csv"]).names == ("x/a.csv", "y/a.csv")
