"""Agreement and strengths against published examples, reference libraries, and simulated raters whose truth is known."""

from __future__ import annotations

import math
import random
import warnings

import numpy as np
import pytest
from scipy.optimize import minimize

from tuneloop.rating.agreement import PairedChoice, alpha, bradley_terry, kappa, spearman

krippendorff = pytest.importorskip("krippendorff")
N = None
TABLE = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]
"""Four observers and twelve units, some missing: Krippendorff 2011, "Computing Krippendorff's alpha-reliability", C and D."""
BINARY = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
NOMINAL = [list("aabbdcccedda"), list("babbbccceddd")]
"""The same paper's A (alpha 0.095) and B (0.692): two observers, nothing missing."""
LEVELS = ("nominal", "ordinal", "interval", "ratio")


def labels(table: list[list[object]]) -> list[tuple[str, str, object]]:
    return [(str(r), str(u), x) for r, row in enumerate(table) for u, x in enumerate(row) if x is not None]


def oracle(table: list[list[object]], level: str) -> float:
    codes = sorted({x for row in table for x in row if x is not None})
    numbers = [
        [np.nan if x is None else float(codes.index(x) if isinstance(x, str) else x) for x in row] for row in table
    ]
    return float(krippendorff.alpha(numbers, level_of_measurement=level))


@pytest.mark.parametrize(("level", "published"), zip(LEVELS, (0.743, 0.815, 0.849, 0.797), strict=True))
def test_alpha_of_the_published_table_with_missing_ratings(level: str, published: float) -> None:
    found = alpha(labels(TABLE), level)
    assert found.estimate == pytest.approx(published, abs=5e-4)
    assert found.estimate == pytest.approx(oracle(TABLE, level), abs=1e-6)
    assert (found.rows, found.note) == (11, "few rows")  # the twelfth was seen by one observer


@pytest.mark.parametrize(("table", "published"), [(BINARY, 0.095), (NOMINAL, 0.692)])
def test_alpha_of_the_published_tables_of_two_observers(table: list[list[object]], published: float) -> None:
    assert alpha(labels(table), "nominal").estimate == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_alpha_equals_the_reference_on_random_tables(level: str) -> None:
    draw = random.Random(level)
    for _ in range(30):
        raters, units = draw.randint(2, 5), draw.randint(3, 40)
        table = [[None if draw.random() < 0.3 else draw.randint(0, 5) for _ in range(units)] for _ in range(raters)]
        found = alpha(labels(table), level)
        if found.estimate is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert found.estimate == pytest.approx(oracle(table, level), abs=1e-6)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "one rater"),
        ([("a", "1", 3), ("a", "2", 4)], "one rater"),
        ([("a", "1", 3), ("b", "2", 4)], "no row was seen by two"),
        ([("a", "1", 3), ("b", "1", 3), ("a", "2", 3), ("b", "2", 3)], "all ratings are equal"),
    ],
)
def test_alpha_is_not_defined_and_says_why(given: list[tuple[str, str, int]], reason: str) -> None:
    for level in ("nominal", "ordinal", "interval"):
        found = alpha(given, level)
        assert found.estimate is None
        assert reason in found.note


# Bradley-Terry


def tournament(draw: random.Random, theta: dict[str, float], rows: int, ties: float = 0.1) -> list[PairedChoice]:
    names, out = sorted(theta), []
    for row in range(rows):
        a, b = draw.sample(names, 2)
        chance = 1 / (1 + math.exp(theta[b] - theta[a]))
        outcome = 0.5 if draw.random() < ties else float(draw.random() < chance)
        out.append(PairedChoice(f"row {row}", a, b, outcome))
    return out


def reference(choices: list[PairedChoice], names: list[str]) -> np.ndarray:
    """The maximum of the likelihood by a general optimiser, the first model at 0."""

    def loss(free: np.ndarray) -> float:
        theta = dict(zip(names, [0.0, *free], strict=True))
        margins = [(theta[c.first] - theta[c.second], c.outcome) for c in choices]
        return sum(np.logaddexp(0, -m) * y + np.logaddexp(0, m) * (1 - y) for m, y in margins)

    found = minimize(loss, np.zeros(len(names) - 1), method="BFGS", options={"gtol": 1e-10})
    return np.array([0.0, *found.x])


@pytest.mark.parametrize("seed", range(8))
def test_strengths_are_the_maximum_of_the_likelihood(seed: int) -> None:
    draw = random.Random(seed)
    theta = {name: draw.gauss(0, 0.8) for name in "abcd"[: draw.randint(2, 4)]}
    choices = tournament(draw, theta, 120)
    strengths = bradley_terry(choices, "a")
    assert [s.model for s in strengths] == sorted(theta)
    mine = np.array([s.log_odds.estimate for s in strengths])
    assert mine == pytest.approx(reference(choices, sorted(theta)), abs=1e-6)
    assert [s.chance.estimate for s in strengths] == pytest.approx(1 / (1 + np.exp(-mine)), abs=1e-12)


def covered(prefers: float, rows: int, spread: float, repetitions: int = 500) -> float:
    """How often the interval holds the truth: two raters rate all rows; `spread`: how much rows differ in preference."""
    draw, hits = np.random.default_rng(7), 0
    for _ in range(repetitions):
        by_row = np.full(rows, prefers)
        if spread:
            by_row = draw.beta(prefers / spread, (1 - prefers) / spread, rows)
        choices = [
            PairedChoice(f"{n}", "tuned", "base", float(draw.random() < by_row[n]))
            for n in range(rows)
            for _ in range(2)
        ]
        chance = bradley_terry(choices, "base")[1].chance
        assert chance.low is not None
        hits += chance.low <= prefers <= chance.high
    return hits / repetitions


def test_the_interval_covers_a_known_preference_of_two_raters() -> None:
    assert 0.93 <= covered(0.7, rows=100, spread=0) <= 0.97


def test_the_interval_covers_where_raters_agree_row_by_row() -> None:
    """Rows have preferences of their own, which both raters share: an interval that counts ratings would be too short."""
    assert 0.93 <= covered(0.7, rows=100, spread=0.5) <= 0.97


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ([], "fewer than two models"),
        ([PairedChoice("1", "a", "b", 1.0)], "one row"),
        ([PairedChoice(str(n), "a", "b", 0.5) for n in range(9)], "all comparisons are ties"),
        ([PairedChoice(str(n), "a", "b", 1.0) for n in range(9)], "never chosen over another"),
        ([PairedChoice(str(n), x, y, n % 2) for n in range(9) for x, y in ("ab", "cd")], "never compared"),
    ],
)
def test_strengths_are_not_defined_and_say_why(choices: list[PairedChoice], reason: str) -> None:
    strengths = bradley_terry(choices, "a")
    assert all(s.chance.estimate is None and reason in s.chance.note for s in strengths)


# A judge and people


def test_kappa_and_rank_correlation() -> None:
    """Cohen's own kind of table: 20 both yes, 5 and 10 apart, 15 both no; kappa is 0.4."""
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    found = kappa(first, second)
    assert found.estimate == pytest.approx(0.4, abs=1e-9)
    assert found.low is not None
    assert found.low < 0.4 < found.high
    draw = random.Random(1)
    x = [(draw.random(), draw.random()) for _ in range(60)]
    y = [(a + draw.random(), b + draw.random()) for a, b in x]
    ranks = [np.argsort(np.argsort(np.ravel(one))) for one in (x, y)]
    assert spearman(x, y).estimate == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-9)


def test_agreement_with_a_judge_is_not_defined_and_says_why() -> None:
    assert "no rows" in kappa([], []).note
    assert "equal" in kappa(["tie"] * 9, ["tie"] * 9).note
    assert "fewer than three" in spearman([(1.0, 2.0)], [(2.0, 1.0)]).note
    assert "equal" in spearman([(1.0, 1.0)] * 9, [(2.0, 1.0)] * 9).note
    for found in (kappa(["a", "b"], ["a", "b"]), spearman([(0, 0), (0, 0), (1, 0)], [(0, 0), (0, 1), (0, 0)])):
        assert found.estimate is not None
        assert all(x is None or math.isfinite(x) for x in (found.estimate, found.low, found.high))
