"""Held-out rows: chosen by hash, stable, a share of every file and label, groups and given sides together."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.data.version.split import SIDES, Split, rank, sides


def names(file: str, count: int, start: int = 0) -> list[str]:
    return [hashlib.sha256(f"{file} {n}".encode()).hexdigest()[:12] for n in range(start, start + count)]


def split(files: dict[str, int], validation: float, test: float = 0, seed: int = 42) -> dict[str, Counter[str]]:
    """Rows of each side of each file."""
    ids = [i for file, count in files.items() for i in names(file, count)]
    strata = [file for file, count in files.items() for _ in range(count)]
    out: dict[str, Counter[str]] = {file: Counter() for file in files}
    for file, side in zip(strata, sides(ids, strata, validation=validation, test=test, seed=seed), strict=True):
        out[file][side] += 1
    return out


def held(file: str, count: int, share: float, seed: int = 42) -> set[str]:
    ids = names(file, count)
    chosen = sides(ids, [file] * count, validation=share, seed=seed)
    return {i for i, side in zip(ids, chosen, strict=True) if side == "validation"}


def test_each_file_of_ten_rows_gives_its_share() -> None:
    counts = split({"a": 200, "b": 50, "c": 10, "d": 5, "e": 5}, 0.1)
    assert [counts[file]["validation"] for file in "abc"] == [20, 5, 1]
    assert counts["d"]["validation"] + counts["e"]["validation"] == 1


def test_a_test_set_beside_a_validation_set() -> None:
    counts = split({"a": 200, "b": 50}, 0.1, 0.2)
    assert counts == {"a": Counter(train=140, validation=20, test=40), "b": Counter(train=35, validation=5, test=10)}


def test_what_is_held_out_for_test_stays_so_with_any_validation() -> None:
    ids = names("a", 100)
    for validation in (0, 0.1, 0.5):
        chosen = sides(ids, ["a"] * 100, validation=validation, test=0.2)
        assert {i for i, side in zip(ids, chosen, strict=True) if side == "test"} == held("a", 100, 0.2)


def test_the_seed_decides_and_the_order_of_rows_does_not() -> None:
    ids = names("a", 100)
    first = dict(zip(ids, sides(ids, ["a"] * 100, validation=0.2, seed=1), strict=True))
    back = dict(zip(ids[::-1], sides(ids[::-1], ["a"] * 100, validation=0.2, seed=1), strict=True))
    assert back == first
    assert held("a", 100, 0.2, seed=2) != held("a", 100, 0.2, seed=1)


def test_rows_of_another_stratum_move_nothing() -> None:
    ids = names("b", 300) + names("a", 100)
    chosen = sides(ids, ["b"] * 300 + ["a"] * 100, validation=0.1)
    assert {i for i, side in list(zip(ids, chosen, strict=True))[300:] if side == "validation"} == held("a", 100, 0.1)


def test_rows_added_to_a_file_move_few() -> None:
    before, after = held("a", 1000, 0.1), held("a", 1100, 0.1)
    assert len(after) == 110
    assert len(before & after) >= 85


def test_rows_that_were_held_out_before_stay_so_and_count() -> None:
    ids, more = names("a", 100), names("a", 300)
    first = sides(ids, ["a"] * 100, validation=0.2, test=0.1)
    before: list[Split | None] = [None if side == "train" else side for side in first] + [None] * 200
    again = sides(more, ["a"] * 300, validation=0.2, test=0.1, before=before)
    assert [a for a, b in zip(again, before, strict=False) if b] == [b for b in before if b]
    assert Counter(again) == {"train": 210, "validation": 60, "test": 30}
    groups = [n % 100 for n in range(300)]  # each row draws two new ones along
    again = sides(more, ["a"] * 300, validation=0.2, test=0.1, before=before, groups=groups)
    assert again == [side for _ in range(3) for side in first]
    assert sides(more, ["a"] * 300, validation=5, before=before).count("validation") == 20, "more than the number"


def test_rows_of_one_id_stay_on_one_side() -> None:
    ids = names("a", 40) * 3
    chosen = sides(ids, ["a"] * 120, validation=0.25, seed=3)
    assert Counter(chosen) == {"train": 90, "validation": 30}
    assert len(set(zip(ids, chosen, strict=True))) == 40


@pytest.mark.parametrize("wanted", [1, 7, 24])
def test_a_number_is_shared_out_in_proportion(wanted: int) -> None:
    counts = split({"a": 160, "b": 80}, wanted)
    assert sum(c["validation"] for c in counts.values()) == wanted
    if wanted == 24:
        assert [counts[file]["validation"] for file in "ab"] == [16, 8]


def test_nothing_is_held_out_if_nothing_is_wanted() -> None:
    assert split({"a": 30}, 0) == {"a": Counter(train=30)}
    assert sides([], [], validation=0.5) == []


@pytest.mark.parametrize(("validation", "test"), [(0.99, 0), (0.5, 0.5), (0, 0.99), (0.9, 0.9)])
@pytest.mark.parametrize("count", [1, 2, 3, 9, 10, 50])
def test_shares_always_leave_something(count: int, validation: float, test: float) -> None:
    assert split({"a": count}, validation, test)["a"]["train"] >= 1


@pytest.mark.parametrize("validation", [5, 6, 1000])
def test_a_number_may_leave_nothing(validation: float) -> None:
    assert split({"a": 5}, validation) == {"a": Counter(validation=5)}


def test_a_large_group_is_chosen_no_sooner_than_a_small_one() -> None:
    """By the first rank of all its rows, a group of five would be held out four times in ten."""
    held_out = 0
    for seed in range(200):
        ids = names("a", 300)
        groups = [0] * 5 + list(range(5, 300))
        held_out += sides(ids, ["a"] * 300, validation=0.1, seed=seed, groups=groups)[0] == "validation"
    assert held_out <= 40  # one in ten: 20, and 40 is four deviations away


def test_groups_do_not_change_how_many_are_held_out() -> None:
    ids = names("a", 300)
    groups = [n // 3 for n in range(150)] + list(range(150, 300))
    for seed in range(20):
        assert sides(ids, ["a"] * 300, validation=0.1, seed=seed, groups=groups).count("validation") == 30


def test_all_rows_in_one_group_are_trained_on() -> None:
    assert set(sides(names("a", 20), ["a"] * 20, validation=0.5, groups=[0] * 20)) == {"train"}


def test_a_given_side_stays_and_takes_its_group_with_it() -> None:
    fixed: list[Split | None] = [None] * 40
    fixed[0], fixed[1], fixed[2] = "test", "validation", "train"
    groups = list(range(40))
    groups[10] = 0
    groups[12] = 2
    chosen = sides(names("a", 40), ["a"] * 40, validation=0.25, groups=groups, fixed=fixed)
    assert [chosen[n] for n in (0, 10, 1, 2, 12)] == ["test", "test", "validation", "train", "train"]
    assert chosen.count("validation") == 1 + 9  # a quarter of the 35 that are free


@settings(deadline=None)
@given(st.data())
def test_the_promises_hold_for_any_rows(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 60))
    ids = [f"{n:012x}" for n in data.draw(st.lists(st.integers(0, 50), min_size=count, max_size=count))]
    strata = data.draw(st.lists(st.sampled_from("abc"), min_size=count, max_size=count))
    share = st.sampled_from([0, 0.1, 0.5, 0.9])
    validation, test, seed = data.draw(share), data.draw(share), data.draw(st.integers(0, 9))
    group_of = data.draw(st.dictionaries(st.sampled_from(ids), st.integers(0, 5)))
    groups = [group_of.get(i, 100 + ids.index(i)) for i in ids]
    chosen = sides(ids, strata, validation=validation, test=test, seed=seed, groups=groups)
    assert chosen == sides(ids, strata, validation=validation, test=test, seed=seed, groups=groups)
    assert set(chosen) <= set(SIDES)
    assert "train" in chosen
    for (g, a), (h, b) in product(zip(groups, chosen, strict=True), repeat=2):
        assert g != h or a == b


def test_pinned_choice() -> None:
    """The choice is a promise: another version of tuneloop must hold out the same rows."""
    assert rank("0123456789ab", 42)[:12] == "92f837919409"
    chosen = sides([f"{n:012x}" for n in range(20)], ["a"] * 20, validation=0.2, test=0.1)
    assert [n for n, side in enumerate(chosen) if side == "validation"] == [0, 2, 6, 9]
    assert [n for n, side in enumerate(chosen) if side == "test"] == [7, 18]
