"""Rows held out from data with labels: training keeps each label, and the shares stay."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.made import build, characters, jsonl, recipe
from tuneloop.data.version import builder
from tuneloop.data.version.holdout import all_learnt
from tuneloop.data.version.split import Split, sides

RARE = ["common"] * 60 + [f"rare{n // 2}" for n in range(40)]


def names(count: int) -> list[str]:
    return [hashlib.sha256(str(n).encode()).hexdigest()[:12] for n in range(count)]


def both(
    labels: Sequence[str], seed: int, *, validation: float = 0.3, test: float = 0.3,
    groups: Sequence[int] | None = None, fixed: Sequence[Split | None] | None = None, strata: Sequence[str] | None = None,
) -> tuple[list[Split], list[Split]]:  # fmt: skip
    """The split as it is drawn, and as it is kept."""
    ids, strata = names(len(labels)), strata or ["f"] * len(labels)
    drawn = sides(ids, strata, validation=validation, test=test, seed=seed, groups=groups, fixed=fixed)
    return drawn, all_learnt(drawn, ids, labels, strata, seed=seed, groups=groups, fixed=fixed)


def learnt(chosen: Sequence[Split], labels: Sequence[str]) -> set[str]:
    return {label for label, side in zip(labels, chosen, strict=True) if side == "train"}


@pytest.mark.parametrize("stratify", [False, True])
def test_training_has_each_label_and_the_shares_stay(stratify: bool) -> None:
    lost = 0
    for seed in range(20):
        drawn, kept = both(RARE, seed, strata=[f"f\0{label}" for label in RARE] if stratify else None)
        lost += learnt(drawn, RARE) != set(RARE)
        assert learnt(kept, RARE) == set(RARE)
        assert Counter(kept) == Counter(drawn)
    assert lost == 20  # else nothing was seen


def test_a_split_with_all_labels_or_with_none_stays_as_it_was_drawn() -> None:
    common = ["a", "b"] * 50
    for labels in (common, [""] * 100):
        drawn, kept = both(labels, 3)
        assert kept == drawn


def test_the_test_set_is_the_same_with_any_validation() -> None:
    for seed in range(5):
        found = [both(RARE, seed, validation=share)[1] for share in (0, 0.1, 0.3)]
        held = [{r for r, side in enumerate(one) if side == "test"} for one in found]
        assert held[0] == held[1] == held[2]


def test_groups_stay_together_and_given_rows_where_they_are() -> None:
    labels = [*RARE, "only"]  # of the test file alone: training cannot have it
    groups = [r // 2 for r in range(100)] + [100]  # each rare label is one group
    fixed: list[Split | None] = [*[None] * 100, "test"]
    for seed in range(10):
        drawn, kept = both(labels, seed, validation=0.2, test=0.2, groups=groups, fixed=fixed)
        assert learnt(drawn, labels) < learnt(kept, labels) == set(RARE)
        assert all(len({kept[r], kept[r + 1]}) == 1 for r in range(0, 100, 2))
        assert kept[100] == "test"
        assert Counter(kept) == Counter(drawn)


def test_a_label_of_each_row_holds_nothing_out() -> None:
    assert set(both([str(n) for n in range(30)], 1)[1]) == {"train"}


@pytest.mark.parametrize("dedupe", ["exact", "near"])
def test_a_version_has_each_label_in_training(dedupe: str, tmp_path: Path) -> None:
    rows = [{"text": f"{label} {hashlib.sha256(str(n).encode()).hexdigest()}", "label": label}
            for n, label in enumerate(RARE)]  # fmt: skip
    made = build(recipe(jsonl(tmp_path / "f.jsonl", rows), dedupe=dedupe, validation=0.4, seed=1), tmp_path)
    assert {r.label for r in made.records("train")} == set(RARE)
    assert made.manifest["counts"]["validation"] == 40


def test_what_was_held_out_draws_what_belongs_to_it_but_never_most_rows(tmp_path: Path) -> None:
    def row(n: int, answer: int) -> dict[str, str]:
        return {"question": f"What is {hashlib.sha256(str(n).encode()).hexdigest()}?", "answer": str(answer) * 30}

    old = jsonl(tmp_path / "old.jsonl", [row(n, n) for n in range(40)])
    wanted = {"validation": 0.1, "test": 0.1, "dedupe": "off"}
    first = build(recipe(old, **wanted), tmp_path)
    sides_of: tuple[Split, ...] = ("validation", "test")
    before = first.held_out()
    (asked, *_) = first.records("validation")
    for count in (3, 90):  # answers to a question that was held out
        again = [{"question": asked.messages[0].content, "answer": str(n) * 30} for n in range(100, 100 + count)]
        new = jsonl(tmp_path / f"new{count}.jsonl", [*again, *(row(n, n) for n in range(200, 240))])
        made = builder.build(recipe(old, new, **wanted), tmp_path, characters, "characters", before=before)
        for side in sides_of:
            assert set(first.ids(side)) <= set(made.ids(side))
        learnt_too = [r for r in made.records("train") if r.messages[0].content == asked.messages[0].content]
        assert bool(learnt_too) == (count == 90)
        assert made.manifest["counts"]["train"] >= 0.6 * (80 + count)
        if count == 90:
            told = {e["reason"] for e in made.manifest["steps"] if e["marked"]}
            assert "question also in training" in told
    plain = build(recipe(old, new, **wanted), tmp_path)
    assert plain.hash != made.hash, "a version that was asked for otherwise is another one"
