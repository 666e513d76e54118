from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.base.errors import DataError
from tuneloop.data.batches.loader import Step, Steps, loader
from tuneloop.data.batches.pack import Batch, pack
from tuneloop.data.batches.plan import FILL, BatchPlan, batch_plan
from tuneloop.data.tokens.samples import Sample, Sequences
from tuneloop.recipe.recipe import make_recipe

BUDGET = 64
lengths = st.lists(st.integers(2, BUDGET), min_size=1, max_size=60).map(tuple)
plans = st.builds(
    BatchPlan,
    lengths,
    batch_size=st.integers(1, 17),
    token_budget=st.just(BUDGET),
    seed=st.integers(0, 99),
    micro_batch_size=st.none() | st.integers(1, 6),
    packing=st.booleans(),
)


def sample(n: int, length: int) -> Sample:
    """Sample n: its tokens tell it from all others, and the last third of it is trained."""
    ids = np.arange(length, dtype=np.int32) + 1000 * n
    return Sample(ids, np.arange(length) >= length - max(1, length // 3), f"r{n}", True)


def samples_of(plan: BatchPlan) -> list[Sample]:
    return [sample(n, length) for n, length in enumerate(plan.lengths)]


def members(row: Batch) -> list[int]:
    """The numbers of the samples in a row, from their tokens."""
    out, at = [], 0
    for length in row.segments:
        part = row.input_ids[0, at : at + length]
        out.append(int(part[0]) // 1000)
        assert part.tolist() == [1000 * out[-1] + i for i in range(length)]
        assert row.position_ids[0, at : at + length].tolist() == list(range(length))
        at += length
    assert at == row.input_ids.shape[1]
    return out


def taught(rows: Sequence[Batch]) -> Counter[tuple[int, int]]:
    """How often each (token before, token to predict) stands in the rows."""
    return Counter(
        (int(row.input_ids[0, p]), int(y))
        for row in rows
        for p, y in zip(row.positions.tolist(), row.targets.tolist(), strict=True)
    )


@given(plans, st.integers(0, 3))
def test_each_sample_comes_once_an_epoch(plan: BatchPlan, epoch: int) -> None:
    first = epoch * plan.steps_per_epoch
    steps = [plan.step(first + k) for k in range(plan.steps_per_epoch)]
    assert Counter(i for bins in steps for b in bins for i in b) == Counter(range(len(plan.lengths)))
    sizes = [sum(len(b) for b in bins) for bins in steps]
    assert sizes[:-1] == [plan.batch_size] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= plan.batch_size


@given(plans)
def test_a_bin_is_never_too_full(plan: BatchPlan) -> None:
    most = (plan.micro_batch_size or plan.batch_size) if plan.packing else 1
    for k in range(plan.steps_per_epoch):
        for b in plan.step(k):
            assert 0 < len(b) <= most
            assert sum(plan.lengths[i] for i in b) <= plan.token_budget


@given(plans)
def test_no_two_bins_could_be_one(plan: BatchPlan) -> None:
    """First fit wastes no forward pass: two bins that are both at most half full would have been one."""
    if not plan.packing or plan.micro_batch_size:
        return
    for k in range(plan.steps_per_epoch):
        loads = sorted(sum(plan.lengths[i] for i in b) for b in plan.step(k))
        assert len(loads) < 2 or loads[0] + loads[1] > plan.token_budget


@given(plans, st.integers(8, BUDGET))
def test_a_pass_is_filled_up_to_so_much(plan: BatchPlan, fill: int) -> None:
    """Passes are kept small; an item that is longer has one of its own; the steps stay the same."""
    small = replace(plan, fill=fill)
    for k in range(plan.steps_per_epoch):
        bins = small.step(k)
        assert sorted(i for b in bins for i in b) == sorted(i for b in plan.step(k) for i in b)
        assert all(len(b) == 1 or sum(plan.lengths[i] for i in b) <= fill for b in bins)


def test_passes_on_a_cpu_are_kept_small() -> None:
    recipe, _ = make_recipe({"train": {"token_budget": 4096}})
    plan = batch_plan(recipe, samples_of(BatchPlan((900, 700, 600, 2000), 4, 4096, 0)))
    assert plan.fill == (None if torch.cuda.is_available() else FILL)
    if plan.fill:
        assert [sum(plan.lengths[i] for i in b) for b in plan.step(0)] == [2000, 900, 700, 600]


@given(plans, st.integers(0, 40), st.integers(2, 4))
@settings(max_examples=60)
def test_ranks_only_share_out_a_step(plan: BatchPlan, k: int, ranks: int) -> None:
    samples = samples_of(plan)
    alone = Steps(plan, samples, k, k + 1)[0]
    parts = [Steps(plan, samples, k, k + 1, rank=r, world_size=ranks)[0] for r in range(ranks)]
    assert len({len(p.batches) for p in parts}) == 1, "a rank that makes fewer passes would be waited for"
    for part in parts:
        facts = (part.number, part.label_tokens, part.tokens, part.samples, part.digest)
        assert facts == (alone.number, alone.label_tokens, alone.tokens, alone.samples, alone.digest)
    working = [row for part in parts for row in part.batches if len(row.targets)]
    assert Counter(i for row in working for i in members(row)) == Counter(
        i for row in alone.batches for i in members(row)
    )
    assert taught(working) == taught(alone.batches)
    assert sum(taught(working).values()) == alone.label_tokens
    idle = [row for part in parts for row in part.batches if not len(row.targets)]
    assert all(len(row.input_ids[0]) > 0 and len(row.positions) == 0 for row in idle)
    assert len(idle) == sum(len(p.batches) for p in parts) - len(alone.batches)


@given(plans, st.integers(0, 60))
@settings(max_examples=30)
def test_a_step_is_the_same_whenever_it_is_asked_for(plan: BatchPlan, k: int) -> None:
    same = BatchPlan(plan.lengths, plan.batch_size, plan.token_budget, plan.seed, plan.micro_batch_size, plan.packing)
    assert same.step(k) == plan.step(k)
    samples = samples_of(plan)
    assert Steps(plan, samples, k, k + 3)[0].digest == Steps(same, samples, max(0, k - 2), k + 1)[min(k, 2)].digest


def test_another_seed_or_epoch_is_another_order() -> None:
    plan = BatchPlan((8,) * 40, 8, BUDGET, seed=1)
    other = BatchPlan((8,) * 40, 8, BUDGET, seed=2)
    orders = [plan.order(0), plan.order(1), plan.order(2), other.order(0)]
    assert len(set(orders)) == 4
    assert all(sorted(o) == list(range(40)) for o in orders)


def test_the_order_is_pinned() -> None:
    """A run that is resumed with a later tuneloop must see the same steps."""
    plan = BatchPlan((10, 20, 30, 40, 50, 60, 15), 4, BUDGET, seed=42)
    assert [plan.step(k) for k in range(4)] == [
        ((5,), (4,), (1, 6)), ((3, 0), (2,)), ((5,), (1, 6, 0)), ((4,), (3,), (2,)),
    ]  # fmt: skip
    assert Steps(plan, samples_of(plan), 0, 1)[0].digest == "f6566ae9"


def test_nothing_global_is_drawn() -> None:
    torch.manual_seed(3)
    random.seed(3)
    before, python = torch.get_rng_state(), random.getstate()
    plan = BatchPlan((8,) * 20, 4, BUDGET, seed=0)
    list(loader(Steps(plan, samples_of(plan), 0, 7), 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python


def test_the_digest_is_of_the_samples_and_not_of_their_bins() -> None:
    packed = BatchPlan((8, 9, 10, 11), 4, BUDGET, seed=0)
    single = BatchPlan((8, 9, 10, 11), 4, BUDGET, seed=0, packing=False)
    digests = {Steps(p, samples_of(p), 0, 1)[0].digest for p in (packed, single)}
    assert len(digests) == 1
    other = [sample(n + 1, length) for n, length in enumerate(packed.lengths)]
    assert Steps(packed, other, 0, 1)[0].digest not in digests


def test_a_row_predicts_each_trained_token_from_the_one_before_it() -> None:
    one = Sample(np.array([1, 2, 3, 4], np.int32), np.array([False, False, True, True]), "a", True)
    all_trained = Sample(np.array([5, 6], np.int32), np.array([True, True]), "b", True)
    row = pack([one, all_trained])
    assert row.input_ids.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert row.segments == (4, 2)
    # 5 is the first of its sample: nothing predicts it, least of all the sample before.
    assert list(zip(row.positions.tolist(), row.targets.tolist(), strict=True)) == [(1, 3), (2, 4), (4, 6)]
    assert len(row.targets) == one.labels + all_trained.labels
    idle = pack([one], labelled=False)
    assert idle.input_ids.tolist() == [[1, 2, 3, 4]]
    assert len(idle.positions) == len(idle.targets) == 0


def same(a: Step, b: Step) -> bool:
    if (a.number, a.label_tokens, a.tokens, a.samples, a.digest) != (
        b.number,
        b.label_tokens,
        b.tokens,
        b.samples,
        b.digest,
    ):
        return False
    return all(
        x.segments == y.segments
        and all(
            torch.equal(getattr(x, k), getattr(y, k)) for k in ("input_ids", "position_ids", "positions", "targets")
        )
        for x, y in zip(a.batches, b.batches, strict=True)
    )


def test_workers_change_nothing() -> None:
    plan = BatchPlan(tuple(5 + 7 * n % 50 for n in range(30)), 4, BUDGET, seed=5)
    samples = samples_of(plan)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    expected = list(loader(Steps(plan, samples, 3, 14), 0))
    assert [s.number for s in expected] == list(range(3, 14))
    found = list(loader(Steps(plan, samples, 3, 14), 2))
    assert len(found) == len(expected)
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_that_are_done_are_none() -> None:
    plan = BatchPlan((8,) * 4, 2, BUDGET, seed=0)
    assert len(Steps(plan, samples_of(plan), 5, 5)) == len(Steps(plan, samples_of(plan), 6, 5)) == 0
    assert list(loader(Steps(plan, samples_of(plan), 5, 5), 0)) == []


def test_a_sample_that_fits_no_row_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        BatchPlan((8, 65, 12), 4, BUDGET, seed=0)
    assert caught.value.code == "TL-DATA-TOO-LONG"
    assert "65" in str(caught.value)
    assert "64" in str(caught.value)


def test_a_recipe_says_how_samples_are_packed() -> None:
    recipe, _ = make_recipe(
        {
            "seed": 7,
            "prepare": {"max_length": 100},
            "train": {"batch_size": 6, "token_budget": 100, "micro_batch_size": 3},
        }
    )
    samples = [sample(n, 10 + n) for n in range(9)]
    plan = batch_plan(recipe, samples)
    assert plan == BatchPlan(tuple(range(10, 19)), 6, 100, 7, 3, True)
    assert not batch_plan(recipe, samples, packing=False).packing
    off = recipe.model_copy(update={"train": recipe.train.model_copy(update={"packing": False})})
    assert not batch_plan(off, samples).packing


def test_lengths_may_be_an_array_and_are_plain_ints() -> None:
    plan = BatchPlan((10, 20, 30), 2, BUDGET, seed=0)
    for lengths in (np.array([10, 20, 30], np.int32), np.array([10, 20, 30]), [10, 20, 30], plan.lengths):
        same = BatchPlan(lengths, 2, BUDGET, seed=0)
        assert same == plan
        assert [type(n) for n in same.lengths] == [int, int, int]
        assert pickle.loads(pickle.dumps(same)) == plan
    assert len(pickle.dumps(BatchPlan(np.full(100_000, 8), 2, BUDGET, seed=0))) < 500_000
    assert BatchPlan((), 2, BUDGET, seed=0).steps_per_epoch == 0


def test_samples_in_arrays_give_the_steps_of_a_list(tmp_path: Path) -> None:
    plan = BatchPlan(tuple(5 + 7 * n % 50 for n in range(30)), 4, BUDGET, seed=5)
    every = samples_of(plan)
    held = Sequences.of(every)
    recipe, _ = make_recipe(
        {"seed": 5, "train": {"batch_size": 4, "token_budget": BUDGET}, "prepare": {"max_length": 60}}
    )
    assert batch_plan(recipe, held) == batch_plan(recipe, every) == plan
    expected = list(loader(Steps(plan, every, 0, 9), 0))
    for steps in (Steps(plan, held, 0, 9), Steps(plan, held.write(tmp_path / "s"), 0, 9)):
        assert all(same(a, b) for a, b in zip(loader(steps, 0), expected, strict=True))


def test_mapped_samples_go_to_workers_by_name(tmp_path: Path) -> None:
    plan = BatchPlan((60,) * 500, 4, BUDGET, seed=5)
    mapped = Sequences.of(samples_of(plan)).write(tmp_path / "s")
    steps = Steps(plan, mapped, 0, 6)
    assert len(pickle.dumps(steps)) < 4000 < mapped.ids.nbytes
    expected = list(loader(Steps(plan, samples_of(plan), 0, 6), 0))
    assert all(same(a, b) for a, b in zip(loader(steps, 1), expected, strict=True))


def test_a_sample_without_a_token_takes_no_place() -> None:
    none = Sample(np.zeros(0, np.int32), np.zeros(0, np.bool_), "none", True)
    row = pack([none, sample(1, 4), none])
    assert row.segments == (0, 4, 0)
    assert row.input_ids.tolist() == pack([sample(1, 4)]).input_ids.tolist()
    assert row.positions.tolist() == pack([sample(1, 4)]).positions.tolist()
