"""The numbers of a version: each is what was put in."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.real import shared
from tests.versions_on_disk import KEY, build, chat, rows, view
from tuneloop.data.card import profile
from tuneloop.data.tokens.samples import open_samples
from tuneloop.data.version.dataset import Dataset


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build(tmp_path_factory.mktemp("profile"))


@pytest.fixture
def numbers(made: Dataset) -> dict[str, Any]:
    return profile.profile(made, KEY, view())


def test_the_profile_in_the_version_is_the_one_that_would_be_taken_now(made: Dataset, numbers: dict[str, Any]) -> None:
    kept = profile.of(made)
    assert kept == json.loads(json.dumps(numbers))
    assert kept["samples"][0]["rendered"]


def test_a_version_without_a_profile_or_with_another_versions_gets_a_fresh_one(made: Dataset, tmp_path: Path) -> None:
    kept = (made.path / profile.PROFILE).read_bytes()
    try:
        for content in (b"", b"[]", b"{}", kept.replace(made.hash.encode(), b"0" * 12), b"\xff"):
            (made.path / profile.PROFILE).write_bytes(content)
            fresh = profile.of(made)
            assert (fresh["hash"], fresh["counts"]) == (made.hash, made.manifest["counts"])
            assert not fresh["samples"][0]["rendered"]
        (made.path / profile.PROFILE).unlink()
        assert profile.of(made)["hash"] == made.hash
    finally:
        (made.path / profile.PROFILE).write_bytes(kept)


def test_turns_and_what_rows_have(numbers: dict[str, Any]) -> None:
    assert numbers["turns"] == [[1, 35], [2, 1]]
    assert numbers["with"] == {"system": 1, "tools": 1, "reasoning": 1, "untrained": 0, "pieces": 0}


def test_answers_that_are_only_context_and_pieces_are_counted(tmp_path: Path) -> None:
    row = chat("one?", "1", "two?", "2")
    row["messages"][1]["weight"] = 0
    long = chat(*(f"{word} question {n}?" if n % 2 == 0 else f"answer {n}" for word in ("the",) for n in range(40)))
    made = build(tmp_path, [row, chat("a?", "b"), long], validation=0, too_long="split", max_length=128)
    having = profile.profile(made, KEY)["with"]
    assert having["untrained"] == 1
    assert having["pieces"] == made.manifest["counts"]["train"] - 2 >= 2


def test_each_step_takes_over_from_the_one_before_and_the_last_gives_what_is_kept(numbers: dict[str, Any]) -> None:
    steps = numbers["steps"]
    assert steps[0]["before"] == numbers["counts"]["rows_in"] == len(rows())
    assert all(a["after"] == b["before"] for a, b in pairwise(steps))
    assert steps[-1]["after"] == sum(numbers["counts"][side] for side in ("train", "validation", "test"))
    effect = {s["step"]: (s["dropped"], s["changed"], s["marked"]) for s in steps}
    assert effect["read"] == (1, 0, 0)
    assert effect["unanswered"] == (0, 1, 0)
    assert effect["pii"] == (0, 0, 1)
    assert effect["dedupe"] == (1, 0, 0)
    assert effect["length"] == (2, 0, 0)
    assert effect["mojibake"] == (0, 0, 0)  # it is on, and did nothing
    assert [s["step"] for s in steps] == sorted(effect, key=profile.ORDER.index)


def test_a_split_that_makes_rows_and_near_repetitions_balance_too() -> None:
    count = {"dropped": 0, "changed": 0, "marked": 0, "added": 0}
    steps = profile.effects(10, [
        {**count, "step": "dedupe", "reason": "nearly repeated", "dropped": 3},
        {**count, "step": "length", "reason": "split by turns", "changed": 1, "added": 4},
        {**count, "step": "a step to come", "reason": "x", "dropped": 1},
    ])  # fmt: skip
    assert [(s["step"], s["before"], s["after"]) for s in steps] == [
        ("a step to come", 10, 9), ("length", 9, 13), ("near", 13, 10),
    ]  # fmt: skip


def test_reasons_have_their_places(numbers: dict[str, Any]) -> None:
    dropped = {one["reason"]: one for one in numbers["reasons"] if one["action"] == "dropped"}
    assert {reason: one["rows"] for reason, one in dropped.items()} == {"too long": 2, "empty row": 1, "repeated": 1}
    assert [(e["file"], e["line"]) for e in dropped["too long"]["examples"]] == [("talk.jsonl", 35), ("talk.jsonl", 36)]
    assert dropped["repeated"]["examples"][0]["detail"] == "talk.jsonl:4"
    assert [one["rows"] for one in numbers["reasons"]] == sorted(
        (one["rows"] for one in numbers["reasons"]), reverse=True
    )


def test_lengths_are_all_rows_and_those_that_were_too_long(made: Dataset, numbers: dict[str, Any]) -> None:
    lengths = numbers["lengths"]
    assert sum(n for _, n in lengths["kept"]) == 36
    assert sum(n for _, n in lengths["too_long"]) == 2
    assert lengths["kept"][-1][0] <= 512 < lengths["too_long"][0][0]
    assert (numbers["max_length"], numbers["context"]) == (512, 2048)
    samples = open_samples(made.path / "tokens" / KEY / "train")
    assert numbers["tokens"]["sampled"] == samples.tokens
    assert 0 < numbers["tokens"]["labels"] == int(samples.trained.sum()) < samples.tokens


def test_languages(numbers: dict[str, Any]) -> None:
    found = dict(numbers["languages"]["found"])
    assert (numbers["languages"]["looked"], numbers["languages"]["of"]) == (36, 36)
    assert found["zh"] == 20
    assert found["en"] >= 14
    assert sum(found.values()) == 36


def test_languages_of_many_rows_are_those_of_a_sample(made: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "LOOKED", 10)
    found = profile.profile(made)["languages"]
    assert (found["looked"], found["of"], sum(n for _, n in found["found"])) == (10, 36, 10)


def test_labels_by_side(tmp_path: Path) -> None:
    content = [{"text": f"a fine day, number {n}", "label": "good" if n % 4 else "bad"} for n in range(40)]
    numbers = profile.profile(build(tmp_path, content), KEY)
    by_name = {one["label"]: one for one in numbers["labels"]}
    assert {name: sum(one[s] for s in ("train", "validation", "test")) for name, one in by_name.items()} == {
        "good": 30,
        "bad": 10,
    }
    assert [by_name[name]["validation"] for name in ("good", "bad")] == [3, 1]
    assert [one["label"] for one in numbers["labels"]] == ["good", "bad"]


def test_many_labels_and_files_are_counted_and_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "MANY", 3)
    content = [{"text": f"a fine day, number {n}", "label": f"l{n % 7}"} for n in range(40)]
    numbers = profile.profile(build(tmp_path, content), KEY)
    assert (len(numbers["labels"]), numbers["more_labels"]) == (3, 4)
    assert (len(numbers["sources"]), numbers["more_sources"]) == (1, {"files": 0, "rows": 0})


def test_repetitions(tmp_path: Path, numbers: dict[str, Any]) -> None:
    assert (numbers["duplicates"]["mode"], numbers["duplicates"]["exact"]) == ("exact", 1)
    near = [
        chat(f"Tell me all about the city of Paris in France, please{mark}", "It lies on the Seine. " * 5)
        for mark in ".!?"
    ]
    made = build(tmp_path, [*near, *rows()], dedupe="near")
    numbers = profile.profile(made, KEY)
    assert numbers["duplicates"]["near"] >= 2
    assert {s["step"]: s["dropped"] for s in numbers["steps"]}["near"] == numbers["duplicates"]["near"]
    assert {s["step"]: s["dropped"] for s in numbers["steps"]}["dedupe"] == 1


@pytest.mark.parametrize(
    ("values", "bars"),
    [([], []), ([0], [[16, 1]]), ([16], [[16, 1]]), ([17], [[19, 1]]), ([1024, 1025], [[1024, 1], [1218, 1]])],
)
def test_histogram(values: list[int], bars: list[list[int]]) -> None:
    assert profile.histogram(values) == bars


def test_every_length_is_in_the_bar_that_says_so() -> None:
    for value in range(1, 5000):
        ((top, n),) = profile.histogram([value])
        assert value <= top
        assert n == 1
        assert top == 16 or top < 1.32 * value


def test_real_rows(tmp_path: Path) -> None:
    content = json.loads(shared("llamafactory/alpaca_zh_demo.json").read_text(encoding="utf-8"))
    numbers = profile.profile(build(tmp_path, content[:200], max_length=4096), KEY)
    assert numbers["languages"]["found"][0][0] == "zh"
    assert numbers["sources"][0]["rows"] == 200
    assert sum(n for _, n in numbers["turns"]) == numbers["steps"][-1]["after"]
