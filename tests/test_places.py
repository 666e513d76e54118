"""What a path stands for, by names alone: folders, sides, classes, what `datasets` saved, slices and samples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.data.reading import folders, places, slices
from tuneloop.errors import DataError
from tuneloop.sections import DataFile


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("train.csv", "train"), ("data/test-00000-of-00004.parquet", "test"), ("dev.tsv", "validation"),
        ("my_valid_set.json", "validation"), ("val/a.json", "validation"), ("eval.jsonl", "validation"),
        ("chats.json", "auto"), ("training/test.json", "train"), ("train_test.json", "auto"), ("contest.json", "auto"),
        ("trainer.json", "auto"), ("TRAIN.CSV", "train"),
    ],
)  # fmt: skip
def test_sides_by_name(name: str, side: str) -> None:
    assert folders.side_of(name) == side


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["pos/1", "neg/2"], {"pos", "neg"}),
        (["train/pos/1", "test/pos/2", "train/neg/3"], {"pos", "neg"}),
        (["top/train/pos/1", "top/train/neg/3"], {"pos", "neg"}),
        (["pos/1", "neg/2", *[f"neg/{n}" for n in range(3, 20)], "README"], {"pos", "neg", ""}),
        (["pos/1", "neg/2", "README", "LICENSE"], set()),
        (["train/1", "test/2"], set()),
        (["pos/1", "pos/2"], set()),
        (["a/pos/1", "b/neg/2"], set()),
        (["a/1", "b/c/2"], set()),
        (["1", "2"], set()),
        ([], set()),
    ],
)  # fmt: skip
def test_classes_by_name(names: list[str], labels: set[str]) -> None:
    assert {leaf.label for leaf in folders.classes(names)} == labels


def test_a_folder_is_listed_without_what_the_system_put_there(tmp_path: Path) -> None:
    for name in ("b/c.json", "a.json", ".git/config", ".DS_Store", "__MACOSX/x", "b/.cache/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert folders.listing(tmp_path) == ["a.json", "b/c.json"]


def test_folders_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError) as caught:
        folders.listing(tmp_path)
    assert caught.value.code == "TL-DATA-FOLDER-EMPTY"
    (tmp_path / "a").write_text("")
    monkeypatch.setattr(folders, "MEMBERS", 0)
    with pytest.raises(DataError) as caught:
        folders.listing(tmp_path)
    assert caught.value.code == "TL-DATA-FOLDER-LARGE"


def test_links_do_not_lead_round_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert folders.listing(tmp_path) == ["a.json"]


@pytest.mark.parametrize("path", ["nothing.json", "no/*.json", "no/train[:5]", "x\0y"])
def test_what_is_not_there(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError) as caught:
        places.find(DataFile(path=f"{tmp_path}/{path}"))
    assert caught.value.code == "TL-DATA-MISSING"


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 120))
def test_a_sample_has_its_size_and_its_shares(counts: dict[str, int], size: int) -> None:
    items = [(label, n) for label, count in counts.items() for n in range(count)]
    drawn = list(slices.drawn(lambda: iter(items), size, 1, lambda item: item[0]))
    assert len(drawn) == min(size, len(items))
    assert len(set(drawn)) == len(drawn)
    assert [items.index(item) for item in drawn] == sorted(items.index(item) for item in drawn)
    for label, count in Counter(label for label, _ in drawn).items():
        assert abs(count - counts[label] * len(drawn) / len(items)) < 1


def test_every_row_is_drawn_equally_often() -> None:
    count = Counter(
        item for seed in range(2000) for item in slices.drawn(lambda: iter(range(10)), 3, seed, lambda _: "")
    )
    assert all(500 < count[n] < 700 for n in range(10))  # 600 expected, 20 the standard deviation


@pytest.mark.parametrize(
    ("path", "rows"),
    [("a.json[:5]", "[:5]"), ("a.json[-5:]", "[-5:]"), ("a[1:9:2]", "[1:9:2]"), ("a.json", None), ("a[1]", None),
     ("a[:5].json", None), ("[:5]", None)],
)  # fmt: skip
def test_slices_in_paths(path: str, rows: str | None) -> None:
    assert slices.parted(path, None) == (path.removesuffix(rows or ""), rows)
