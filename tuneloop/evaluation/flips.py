"""Rows that the trained model answers worse than the base did, worst first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tuneloop.evaluation.evaluation import Answer, Evaluation
from tuneloop.evaluation.overlap import rouge
from tuneloop.evaluation.paired import RowScores

VERDICTS = ("exact_match", "accuracy", "calls")
"""Row metrics of 0 and 1: right or wrong. A row that has one flips from right to wrong and by nothing else."""
GRADES = ("chrf", "token_f1", "rougeL")
"""Row metrics that compare a text with its reference, the first one that both models have counts."""
SMALLEST_DROP = 10.0
"""Points of 100 that a grade must fall by to be listed: less is another wording of the same answer."""


@dataclass(frozen=True, slots=True)
class Flip:
    """One row and what became of it: its question, both answers, the reference, and where it stands."""

    question: str
    before: str
    after: str
    reference: str
    metric: str
    """The row metric that fell, a name of VERDICTS or GRADES."""
    before_score: float
    after_score: float
    section: str = ""
    """"" for held-out rows, else the section of the suite."""
    id: str = ""
    file: str = ""
    line: int = 0

    @property
    def right_to_wrong(self) -> bool:
        """Whether a right answer became a wrong one; else a text moved away from its reference."""
        return self.metric in VERDICTS

    @property
    def drop(self) -> float:
        """How far it fell, in points of the metric."""
        return self.before_score - self.after_score


def flips(evaluation: Evaluation) -> list[Flip]:
    """The rows that became worse, worst first: from right to wrong, then by how far the score fell.

    >>> same = dict(prompt="2+2?", reference="4", id="a", file="sums.csv", line=3)
    >>> rows = (RowScores("a", "", {"exact_match": 1.0}, {"exact_match": 0.0}),)
    >>> [flip] = flips(Evaluation(answers=(Answer(before="4", after="5", **same),), row_scores=rows))
    >>> flip.after, flip.reference, flip.file, flip.line, flip.right_to_wrong
    ('5', '4', 'sums.csv', 3, True)
    """
    scores = {(row.section, row.id): row for row in evaluation.row_scores}
    every = list(_flips((*evaluation.answers, *evaluation.section_answers), scores))
    return sorted(every, key=lambda flip: (not flip.right_to_wrong, -flip.drop, flip.section, flip.file, flip.line))


def _flips(answers: Sequence[Answer], scores: Mapping[tuple[str, str], RowScores]) -> Iterator[Flip]:
    for answer in answers:
        metric, before, after = _compared(answer, scores.get((answer.section, answer.id)))
        if before - after > (0.0 if metric in VERDICTS else SMALLEST_DROP):
            yield Flip(
                answer.prompt,
                answer.before,
                answer.after,
                answer.reference,
                metric,
                before,
                after,
                answer.section,
                answer.id,
                answer.file,
                answer.line,
            )


def _compared(answer: Answer, row: RowScores | None) -> tuple[str, float, float]:
    """The metric that speaks for a row, and both models' scores; ROUGE-L where nothing was measured row by row."""
    for metric in (*VERDICTS, *GRADES) if row is not None else ():
        assert row is not None
        before, after = row.before.get(metric), row.after.get(metric)
        if before is not None and after is not None and metric_speaks(metric, before, after):
            return metric, before, after
    if not answer.reference.strip():
        return "rougeL", 0.0, 0.0
    before, after = (rouge([text], [answer.reference], ["rougeL"])["rougeL"] for text in (answer.before, answer.after))
    return "rougeL", before, after


def metric_speaks(metric: str, before: float, after: float) -> bool:
    """Whether a row metric tells anything: two free texts that are both no exact match may still differ.

    >>> metric_speaks("exact_match", 0.0, 0.0), metric_speaks("accuracy", 0.0, 0.0), metric_speaks("chrf", 0.0, 0.0)
    (False, True, True)
    """
    return metric != "exact_match" or before != after
