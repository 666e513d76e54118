"""Held-out dialogues: chosen by hash, stable, a share of every file."""

from __future__ import annotations

from collections import Counter

import pytest

from tuneloop.data.split import split
from tuneloop.errors import DataError
from tuneloop.records import Message, Record


def rows(file: str, count: int, start: int = 0) -> list[Record]:
    return [
        Record((Message("user", f"{file} {n}"), Message("assistant", "a")), file, n + 1)
        for n in range(start, start + count)
    ]


def test_each_file_of_ten_rows_gives_its_share() -> None:
    records = rows("a", 200) + rows("b", 50) + rows("c", 10) + rows("d", 5) + rows("e", 5)
    train, held = split(records, 0.1, 42)
    assert Counter(r.file for r in held) | Counter() >= Counter(a=20, b=5, c=1)
    assert sum(r.file in "de" for r in held) == 1
    assert sorted(r.id for r in train + held) == sorted(r.id for r in records)


def test_order_is_kept_and_nothing_is_on_both_sides() -> None:
    records = rows("a", 60)
    train, held = split(records, 0.25, 1)
    assert train == [r for r in records if r in train]
    assert held == [r for r in records if r in held]
    assert not {r.id for r in train} & {r.id for r in held}


def test_the_seed_decides_and_the_order_of_rows_does_not() -> None:
    records = rows("a", 100)
    first = {r.id for r in split(records, 0.2, 1)[1]}
    assert {r.id for r in split(records[::-1], 0.2, 1)[1]} == first
    assert {r.id for r in split(records, 0.2, 2)[1]} != first


def test_rows_of_another_file_move_nothing() -> None:
    before = {r.id for r in split(rows("a", 100), 0.1, 42)[1]}
    after = {r.id for r in split(rows("b", 300) + rows("a", 100), 0.1, 42)[1] if r.file == "a"}
    assert before == after


def test_rows_added_to_a_file_move_few() -> None:
    before = {r.id for r in split(rows("a", 1000), 0.1, 42)[1]}
    after = {r.id for r in split(rows("a", 1100), 0.1, 42)[1]}
    assert len(after) == 110
    assert len(before & after) >= 85


def test_equal_dialogues_stay_on_one_side() -> None:
    records = rows("a", 40) * 3
    train, held = split(records, 0.25, 3)
    assert len(held) == 30
    assert not {r.id for r in train} & {r.id for r in held}


@pytest.mark.parametrize("wanted", [1, 7, 24])
def test_a_number_is_shared_out_in_proportion(wanted: int) -> None:
    records = rows("a", 160) + rows("b", 80)
    _, held = split(records, wanted, 42)
    assert len(held) == wanted
    if wanted == 24:
        assert Counter(r.file for r in held) == {"a": 16, "b": 8}


def test_nothing_held_out_if_nothing_is_wanted() -> None:
    records = rows("a", 30)
    assert split(records, 0, 42) == (records, [])


@pytest.mark.parametrize(("count", "validation"), [(10, 0.99), (3, 0.5), (1, 0.5), (2, 0.9)])
def test_a_share_always_leaves_something(count: int, validation: float) -> None:
    train, held = split(rows("a", count), validation, 42)
    assert train
    assert len(train) + len(held) == count


@pytest.mark.parametrize("validation", [5, 6, 1000])
def test_a_number_may_leave_nothing_and_that_is_an_error(validation: float) -> None:
    with pytest.raises(DataError) as caught:
        split(rows("a", 5), validation, 42)
    assert caught.value.code == "TL-DATA-NOTHING-LEFT"
    assert "prepare.validation" in str(caught.value)
    with pytest.raises(DataError):
        split([], 0.1, 42)


def test_pinned_choice() -> None:
    """The choice is a promise: another version of tuneloop must hold out the same rows."""
    assert [r.line for r in split(rows("a", 20), 0.2, 42)[1]] == [3, 15, 17, 18]
