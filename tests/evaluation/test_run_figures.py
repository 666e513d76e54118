from __future__ import annotations

import pytest

from tests.evaluations import evaluation
from tuneloop.evaluation.evaluation import Answer, Evaluation
from tuneloop.evaluation.paired import RowScores
from tuneloop.evaluation.run_figures import paired_runs, run_figures, run_pairs, shared_rows


def run(*losses: float, first: int = 0, tokens: float = 5.0, text: str = "a cat sat") -> Evaluation:
    """A run measured on rows that are numbered from `first`."""
    ids = [str(first + k) for k in range(len(losses))]
    scored = tuple(RowScores(i, "", {"loss": 9.0}, {"loss": x}, tokens) for i, x in zip(ids, losses, strict=True))
    answers = tuple(Answer("?", "", text, "a cat sat here", id=i) for i in ids)
    return evaluation(row_scores=scored, answers=answers)


def test_runs_are_paired_by_the_rows_they_share() -> None:
    left, right = run(*[2.0] * 40), run(*[1.0 + 0.01 * k for k in range(40)], first=10)
    assert len(shared_rows(left, right)) == 30
    pair = next(p for p in paired_runs(left, right) if p.metric == "loss")
    assert pair.difference.rows == 30
    assert pair.separation == "better"
    assert pair.before.estimate == 2.0, "the left run after training, not before"


def test_answers_are_compared_as_texts() -> None:
    pairs = {p.metric: p for p in paired_runs(run(*[1.0] * 8), run(*[1.0] * 8, text="a cat sat here"))}
    assert pairs["chrf"].after.estimate == pytest.approx(100.0)
    assert (pairs["bleu"].difference.estimate or 0) > 0


def test_losses_a_token_of_other_tokens_are_not_compared() -> None:
    pairs = {p.metric for p in paired_runs(run(*[2.0] * 9), run(*[1.0] * 9, tokens=7.0))}
    assert not pairs & {"loss", "perplexity"}


def test_no_row_in_common_is_no_pair() -> None:
    assert paired_runs(run(1.0), run(1.0, first=5)) == []
    assert run_pairs([run(1.0), run(1.0, first=5), evaluation()]) == []


def test_figures_of_old_evaluations_have_no_interval() -> None:
    figures = {one.metric: one for one in run_figures([evaluation(2.0, 1.5), evaluation(2.0, 1.0)])}
    assert [one.estimate for one in figures["loss"].estimates] == [1.5, 1.0]
    assert all(one.low is None for one in figures["loss"].estimates)
    assert figures["loss"].against_first == (None, None)
    with pytest.raises(ValueError, match="no runs"):
        run_figures([])
