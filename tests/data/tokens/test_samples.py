"""Tokenised dialogues as arrays: the same samples in memory, joined, taken, on the disk and in another process."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.base.errors import DataError
from tuneloop.data.tokens.samples import (
    COLUMNS,
    META,
    Sample,
    Sequences,
    labels_of,
    open_samples,
    starts_of,
    write,
)


def sample(seed: int, length: int) -> Sample:
    rng = np.random.default_rng(seed)
    return Sample(
        rng.integers(0, 50_000, length, dtype=np.int32), rng.random(length) < 0.5, f"{seed:012x}", seed % 3 != 0
    )


def some(*lengths: int) -> list[Sample]:
    return [sample(n, length) for n, length in enumerate(lengths)]


def same(one: Sequences, other: Sequences | list[Sample]) -> bool:
    return len(one) == len(other) and all(
        (a.ids.tolist(), a.trained.tolist(), a.record, a.ended, a.labels)
        == (b.ids.tolist(), b.trained.tolist(), b.record, b.ended, b.labels)
        for a, b in zip(one, other, strict=True)
    )


LENGTHS = st.lists(st.integers(0, 9), max_size=12)


@given(LENGTHS)
def test_samples_come_back_as_they_went_in(lengths: list[int]) -> None:
    every = some(*lengths)
    held = Sequences.of(every)
    assert same(held, every)
    assert held.lengths.tolist() == lengths
    assert held.tokens == sum(lengths)
    assert held.labels.tolist() == [s.labels for s in every]
    assert {name: getattr(held, name).dtype.str for name in COLUMNS} == COLUMNS
    assert Sequences.of(held) is held


@given(LENGTHS, st.data())
def test_taking_is_choosing(lengths: list[int], data: st.DataObject) -> None:
    every = some(*lengths)
    index = data.draw(st.lists(st.integers(0, len(lengths) - 1)) if lengths else st.just([]))
    taken = Sequences.of(every).take(np.array(index))
    assert same(taken, [every[k] for k in index])
    assert taken.row.tolist() == index
    assert taken.records == len(every)


@given(st.lists(LENGTHS, max_size=4))
def test_parts_are_one_whole(parts: list[list[int]]) -> None:
    every = [sample(100 * k + n, length) for k, own in enumerate(parts) for n, length in enumerate(own)]
    split = iter(every)
    held = [Sequences.of([next(split) for _ in own]) for own in parts]
    joined = Sequences.concatenate(held)
    assert same(joined, every)
    assert joined.row.tolist() == list(range(len(every)))
    assert joined.records == len(every)
    assert {name: getattr(joined, name).dtype.str for name in COLUMNS} == COLUMNS


def test_a_sample_is_a_view_and_a_slice_are_samples() -> None:
    held = Sequences.of(some(3, 0, 5))
    assert np.shares_memory(held[2].ids, held.ids)
    assert held[-1].record == held[2].record
    assert same(held[1:], some(3, 0, 5)[1:])
    for outside in (3, -4):
        with pytest.raises(IndexError):
            held[outside]


@pytest.mark.parametrize("lengths", [(), (4,), (0,), (3, 0, 7, 2), (0, 0)])
def test_what_is_written_is_read(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    every = some(*lengths)
    folder = tmp_path / "deep" / "samples"
    held = Sequences.of(every).write(folder)
    assert held.folder == folder
    assert same(held, every)
    assert same(open_samples(folder), every)
    assert [p.name for p in folder.parent.iterdir()] == ["samples"]
    assert {p.name for p in folder.iterdir()} == {META, *(f"{name}.npy" for name in COLUMNS)}
    for name in COLUMNS:  # any other tool reads them
        assert np.array_equal(np.load(folder / f"{name}.npy", allow_pickle=False), getattr(held, name))


def test_parts_are_written_one_after_the_other(tmp_path: Path) -> None:
    parts = [Sequences.of(some(2, 3)), Sequences.of([]), Sequences.of(some(0, 4, 1))]
    held = write(tmp_path / "s", iter(parts))
    assert same(held, [s for part in parts for s in part])
    assert held.row.tolist() == [0, 1, 2, 3, 4]
    assert held.records == 5


def test_writing_holds_one_part_in_memory(tmp_path: Path) -> None:
    part = Sequences.of([sample(n, 1000) for n in range(100)])
    tracemalloc.start()
    write(tmp_path / "s", (part for _ in range(40)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * part.ids.nbytes < 40 * part.ids.nbytes / 4


def test_a_second_write_takes_the_place_of_the_first(tmp_path: Path) -> None:
    Sequences.of(some(5, 6)).write(tmp_path / "s")
    assert same(Sequences.of(some(1)).write(tmp_path / "s"), some(1))
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    Sequences.of(some(5, 6)).write(tmp_path / "s")

    def broken() -> object:
        yield Sequences.of(some(1))
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write(tmp_path / "s", broken())  # type: ignore[arg-type]
    assert same(open_samples(tmp_path / "s"), some(5, 6))
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_samples(folder)
    assert caught.value.code == "TL-DATA-SAMPLES"
    assert caught.value.where == str(folder)
    assert "?" not in caught.value.what
    return caught.value.what


def test_what_is_damaged_is_refused(tmp_path: Path) -> None:
    refused(tmp_path)
    for name in (*(f"{column}.npy" for column in COLUMNS), META):
        folder = tmp_path / name
        Sequences.of(some(5, 6)).write(folder)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1])
        said = refused(folder)
        assert name in said or name == META
        (folder / name).unlink()
        refused(folder)


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    Sequences.of(some(5, 6)).write(folder)
    np.save(folder / "starts.npy", np.array([0, 8, 11], np.int64)[::-1].copy())
    assert "starts.npy" in refused(folder)
    Sequences.of(some(5, 6)).write(folder)
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    (folder / META).write_text(json.dumps(meta | {"format": 99}), encoding="utf-8")
    assert "99" in refused(folder)


def test_a_pickled_array_is_never_opened(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    Sequences.of(some(5, 6)).write(folder)
    np.save(folder / "ids.npy", np.array([{"evil": 1}], dtype=object), allow_pickle=True)
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    meta["bytes"]["ids"] = (folder / "ids.npy").stat().st_size
    (folder / META).write_text(json.dumps(meta), encoding="utf-8")
    refused(folder)


def test_mapped_samples_go_to_a_worker_by_name(tmp_path: Path) -> None:
    held = Sequences.of([sample(n, 500) for n in range(200)])
    assert same(pickle.loads(pickle.dumps(held)), held)
    mapped = held.write(tmp_path / "s")
    sent = pickle.dumps(mapped)
    assert len(sent) < 1000 < held.ids.nbytes
    script = "import pickle, sys; print(int(pickle.load(sys.stdin.buffer).ids.sum()))"
    done = subprocess.run([sys.executable, "-c", script], input=sent, capture_output=True, check=True)
    assert int(done.stdout) == int(held.ids.sum())


def test_the_first_token_is_no_label() -> None:
    trained = np.array([1, 1, 1, 0, 1, 1], np.bool_)
    assert labels_of(trained, starts_of(np.array([2, 0, 1, 3]))).tolist() == [1, 0, 0, 2]
