"""Rows that stay extreme: on made losses, and on those that real runs of MiniLM had (recorded/labels_*.json)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tuneloop.monitor.row_losses import SuspiciousRows, suspicious_rows

RECORDED = Path(__file__).parent / "recorded"
FLIPPED = sorted(p.stem for p in RECORDED.glob("labels_topics_*.json") if "clean" not in p.stem)
QUIET = sorted(p.stem for p in RECORDED.glob("labels_*.json") if p.stem not in FLIPPED)


def recorded(name: str) -> tuple[NDArray[np.float64], NDArray[np.int64], set[int]]:
    """(losses [passes, n], labels [n], the rows whose label was changed)"""
    line = json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))
    return np.array(line["losses"]), np.array(line["labels"], np.int64), set(line["corrupted"])


def made(rows: int = 400, wrong: int = 40, passes: int = 3, seed: int = 0) -> NDArray[np.float64]:
    """Losses of rows of which the first `wrong` are wrong: nothing is known in the first pass, then the right are."""
    rng = np.random.default_rng(seed)
    right = rng.gamma(2.0, 0.05, (passes, rows))
    right[:, :wrong] = rng.normal(2.5, 0.4, (passes, wrong))
    right[0] = rng.normal(1.1, 0.1, rows)
    return np.maximum(right, 0.0)


def found(losses: NDArray[np.float64], labels: NDArray[np.int64] | None = None) -> SuspiciousRows:
    result = suspicious_rows(losses, labels)
    assert result is not None
    return result


@pytest.mark.parametrize("name", FLIPPED)
def test_of_a_tenth_of_changed_labels_most_are_listed_and_most_of_the_list_is_changed(name: str) -> None:
    losses, labels, corrupted = recorded(name)
    result = found(losses, labels)
    hit = len(corrupted & set(result.rows))
    assert result.level == "watch"
    assert hit >= 0.8 * len(corrupted)
    assert hit >= 0.7 * len(result.rows)


@pytest.mark.parametrize("name", FLIPPED)
def test_after_two_passes_there_is_no_list_or_a_right_one(name: str) -> None:
    losses, labels, corrupted = recorded(name)
    result = suspicious_rows(losses[:2], labels)
    assert result is None or len(corrupted & set(result.rows)) >= 0.7 * len(result.rows)


@pytest.mark.parametrize("name", QUIET)
def test_rows_that_are_right_or_cannot_be_told_from_wrong_ones_raise_no_alert(name: str) -> None:
    losses, labels, _ = recorded(name)
    for passes in (2, 3):
        result = suspicious_rows(losses[:passes], labels)
        assert result is None or result.level == "note"


def test_one_pass_tells_nothing_nor_do_a_few_rows() -> None:
    labels = np.zeros(400, np.int64)
    assert suspicious_rows(made()[:1], labels) is None
    assert suspicious_rows(made()[:, :45], labels[:45]) is None


def test_the_most_extreme_row_stands_first_with_what_it_lost() -> None:
    losses = made()
    losses[1:, 7] = 9.0
    result = found(losses, np.arange(400) % 4)
    assert result.rows[0] == 7
    assert result.losses[0] == pytest.approx(9.0)
    assert set(result.rows) == set(range(40))
    assert result.median == pytest.approx(float(np.median(losses[1:].mean(0))))


def test_rows_that_are_known_by_heart_later_stay_in_the_list() -> None:
    losses = np.concatenate([made(), np.full((20, 400), 0.01)])
    assert set(found(losses, np.arange(400) % 4).rows) == set(range(40))


def test_losses_of_one_bulk_give_no_list() -> None:
    rng = np.random.default_rng(1)
    for losses in (rng.gamma(1.0, 0.5, (3, 500)), rng.normal(2.0, 0.3, (3, 500)), np.full((3, 500), 0.7)):
        assert suspicious_rows(losses, np.arange(500) % 2) is None


def test_a_label_that_is_not_learned_yet_is_no_list_of_wrong_rows() -> None:
    labels = np.arange(400) % 4
    labels[:40] = 4
    assert suspicious_rows(made(), labels) is None


def test_without_labels_and_with_a_few_rows_it_is_a_note() -> None:
    labels = np.arange(400) % 4
    assert found(made(), None).level == "note"
    assert found(made(), labels).level == "watch"
    losses = made(wrong=3)
    losses[1:, 3:] /= 10
    assert set(found(losses, labels).rows) == {0, 1, 2}
    assert found(losses, labels).level == "note"


def test_rows_that_were_not_seen_or_have_no_number_are_left_out() -> None:
    losses = made()
    losses[:, 100:120] = np.nan
    losses[2, 120:200] = np.inf
    result = found(losses, np.arange(400) % 4)
    assert set(range(40)) <= set(result.rows)
    assert not set(range(100, 120)) & set(result.rows)
    assert result.of == 380
