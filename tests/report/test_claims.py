from __future__ import annotations

import pytest

from tests.evaluations import evaluation
from tuneloop.evaluation.intervals import Estimate
from tuneloop.evaluation.paired import Paired, RowScores
from tuneloop.recipe.schema import ClaimPart
from tuneloop.report import claims
from tuneloop.report.costs import Cost

CHEAP, DEAR = Cost(10.0, 1.0, 100, 1.0, 15, 1000), Cost(100.0, 1.0, 100, 2.0, 1000, 1000)
CLAIM = ClaimPart(variant="lora", against="full", cost=0.15, loss=0.03)


def scored(*losses: float) -> tuple[RowScores, ...]:
    return tuple(RowScores(str(k), "", {"loss": 9.0}, {"loss": one}, 5.0) for k, one in enumerate(losses))


@pytest.mark.parametrize(
    ("low", "high", "ruling"), [(0.01, 0.05, "held"), (0.07, 0.2, "not held"), (-0.01, 0.07, "not separable")]
)
def test_a_claim_about_quality_goes_by_the_whole_interval(low: float, high: float, ruling: str) -> None:
    change = Estimate((low + high) / 2, low, high, 60, "bca")
    pair = Paired("loss", "", Estimate(2.0, 1.9, 2.1, 60, "bca"), Estimate(2.1), change, "worse", 0.01)
    assert claims.lost(pair, 0.03).ruling == ruling


def test_more_of_a_metric_that_is_better_when_higher_is_no_loss() -> None:
    change = Estimate(-0.1, -0.15, -0.05, 60, "newcombe")
    pair = Paired("accuracy", "", Estimate(0.8), Estimate(0.7), change, "worse", 0.01)
    line = claims.lost(pair, 0.03)
    assert (round(line.share or 0, 4), line.ruling) == (0.125, "not held")
    assert line.low is not None
    assert line.high is not None
    assert line.low < (line.share or 0) < line.high


def test_what_came_out_of_costs_and_quality() -> None:
    draws = [1.5 + 0.1 * (k % 7) for k in range(60)]
    mine, other = (evaluation(row_scores=scored(*(one + more for one in draws))) for more in (0.01, 0.0))
    found = claims.finding(CLAIM, (CHEAP, DEAR), (mine, other))
    assert {line.what: line.ruling for line in found.lines} == {
        "time": "held", "memory": "not held", "trained": "held", "loss": "held",
    }  # fmt: skip
    assert found.ruling == "not held", "one line that is not held is enough"
    assert claims.ClaimFinding.from_dict(found.as_dict()) == found
    assert [row[2] for row in claims.rows(found)][:3] == ["10.0 %", "50.0 %", "1.5 %"]


def test_without_rows_in_common_nothing_is_claimed() -> None:
    mine, other = evaluation(row_scores=scored(1.0)), evaluation()
    found = claims.finding(CLAIM, (Cost(*[None] * 6), DEAR), (mine, other))
    assert {line.ruling for line in found.lines} == {"not defined"}
    assert found.ruling == "not defined"
    assert all("nan" not in " ".join(row).lower() for row in claims.rows(found))
