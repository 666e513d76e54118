"""The metrics of an evaluation: pure functions, and `METRICS`, the one table of their names, directions and digits.

They know no model and no file; nothing here asks a network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tuneloop.base.language import t
from tuneloop.evaluation import calls, form
from tuneloop.evaluation.overlap import bleu, chrf, exact_match, rouge, rouge_rows, token_f1


def perplexity(loss: float) -> float:
    """exp(loss): of a mean cross entropy in nats a token, how many tokens the model hesitates between on average.

    Source: Jelinek et al. 1977, "Perplexity - a measure of the difficulty of speech recognition tasks".

    >>> perplexity(0.0)
    1.0
    >>> perplexity(1e6)
    inf
    """
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def matches(pattern: str, text: str) -> bool:
    """Whether a regular expression occurs in a text, case ignored. Raises re.error for a broken pattern.

    >>> matches("lumi|露米", "I am LUMI."), matches("^no", "yes, no")
    (True, False)
    """
    return re.search(pattern, text, re.IGNORECASE) is not None


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Texts of one class, and how well they are told from the others."""

    texts: int
    precision: float
    recall: float
    f1: float


def accuracy(matrix: Sequence[Sequence[int]]) -> float | None:
    """Share of right answers in a confusion matrix (row: class, column: answer); None of no texts.

    >>> accuracy([[1, 1], [0, 1]]), accuracy([[0, 0], [0, 0]])
    (0.6666666666666666, None)
    """
    total = sum(map(sum, matrix))
    return sum(row[k] for k, row in enumerate(matrix)) / total if total else None


def by_class(matrix: Sequence[Sequence[int]]) -> list[ClassScore]:
    """Precision, recall and F1 of each class; 0 where a quotient has nothing below its line, as scikit-learn has it.

    >>> [round(c.f1, 3) for c in by_class([[1, 1], [0, 1]])]
    [0.667, 0.667]
    """
    scores = []
    for k, row in enumerate(matrix):
        right, texts, answers = row[k], sum(row), sum(other[k] for other in matrix)
        precision, recall = right / answers if answers else 0.0, right / texts if texts else 0.0
        total = precision + recall
        scores.append(ClassScore(texts, precision, recall, 2 * precision * recall / total if total else 0.0))
    return scores


def macro_f1(matrix: Sequence[Sequence[int]]) -> float | None:
    """Mean F1 of the classes that occur, in the texts or in the answers; None of no texts.

    >>> round(macro_f1([[1, 1], [0, 1]]), 3)
    0.667
    """
    present = [one.f1 for k, one in enumerate(by_class(matrix)) if one.texts or any(row[k] for row in matrix)]
    return sum(present) / len(present) if present else None


SLACK = 0.005
"""Held-out loss may rise by this share before it counts as worse: less than what another seed changes."""

Interval = Literal["", "mean", "proportion", "ratio", "corpus"]
"""How a metric of rows gets its interval. mean: of the rows' figures; proportion: of rows that are right, each worth
`scale`; ratio: a mean that weighs each row (`RowScores.weight`); corpus: the metric of resampled rows; "": none."""

Need = Literal["rows", "tokens", "labels", "pairs", "leads", "answers", "replies", "thoughts", "calls"]
"""What a metric is measured on. rows: the mean loss of held-out rows in nats, float; tokens: the same, where it is a
label token's; labels: a confusion matrix; pairs: by how much the better answer of each pair is ahead, float64 [pairs];
leads: the same, or of judged answers the one lead of the good over the bad; answers: written texts and references;
replies, thoughts: `Reply` objects, these of a model that thinks; calls: replies, and the rows whose tools they had."""
ALWAYS: frozenset[Need] = frozenset({"rows", "tokens", "answers"})
"""Metrics of these are listed even where they were not measured; the others where the task has them."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of every table of scores. `digits` are decimals in the report; `measure` takes what `needs` says."""

    label: Callable[[], str]
    """Its name in the reader's language."""
    higher_is_better: bool | None
    """None where more of it is neither better nor worse."""
    digits: int
    needs: Need
    measure: Callable[..., float | None]
    interval: Interval = ""
    by_row: Callable[..., float | None] | None = None
    """Its figure of one row, from what `measure` takes of that row; None where rows have none, or another source."""
    scale: float = 1.0
    """What a row that is right counts in a proportion: 100 in a percentage."""
    slack: float = 0.0
    """Share of the figure that another seed changes as well: less is neither better nor worse."""
    of_rows: str = ""
    """The metric whose figures of rows it is computed from, "" where these are its own."""


def _mean_of(by_row: Callable[..., float | None]) -> Callable[..., float | None]:
    """The metric that is the mean of a figure of each row that has one; None of no rows."""

    def mean(*evidence: Sequence[Any]) -> float | None:
        figures = [figure for row in zip(*evidence, strict=True) if (figure := by_row(*row)) is not None]
        return math.fsum(figures) / len(figures) if figures else None

    return mean


def _of_rows(
    label: Callable[[], str],
    up: bool | None,
    digits: int,
    needs: Need,
    interval: Interval,
    by_row: Callable[..., float | None],
) -> Metric:
    """A metric that is the mean of a figure of each row; where that is a share of rows, it is a percentage."""
    return Metric(
        label, up, digits, needs, _mean_of(by_row), interval, by_row, scale=100 if interval == "proportion" else 1
    )


def _rouge(kind: str) -> Metric:
    def score(hypotheses: Sequence[str], references: Sequence[str]) -> float:
        return rouge(hypotheses, references, [kind])[kind]

    def by_row(answer: str, reference: str) -> float:
        return 100.0 * rouge_rows([answer], [reference], [kind])[kind][0]

    return Metric(lambda: kind.replace("rouge", "ROUGE-"), True, 1, "answers", score, "mean", by_row)


METRICS: dict[str, Metric] = {
    "loss": Metric(lambda: t("held-out loss"), False, 3, "rows", lambda loss: loss, "ratio", slack=SLACK),
    "accuracy": Metric(lambda: t("accuracy"), True, 3, "labels", accuracy, "proportion"),
    "macro_f1": Metric(lambda: t("macro F1"), True, 3, "labels", macro_f1, "corpus"),
    "perplexity": Metric(lambda: t("perplexity"), False, 1, "tokens", perplexity, "ratio", of_rows="loss"),
    "preferred": Metric(lambda: t("better answer preferred, % of pairs"), True, 1, "pairs",
                        lambda leads: 100 * float((leads > 0).mean()), "proportion", scale=100),
    "margin": Metric(lambda: t("lead of the better answer"), True, 3, "leads", lambda leads: float(leads.mean()),
                     "mean"),
    "bleu": Metric(lambda: "BLEU", True, 1, "answers", bleu, "corpus"),
    "chrf": Metric(lambda: "chrF", True, 1, "answers", chrf, "corpus", lambda one, wanted: chrf([one], [wanted])),
    "rouge1": _rouge("rouge1"),
    "rouge2": _rouge("rouge2"),
    "rougeL": _rouge("rougeL"),
    "exact_match": _of_rows(lambda: t("exact match, %"), True, 1, "answers", "proportion", exact_match),
    "token_f1": _of_rows(lambda: t("token F1"), True, 1, "answers", "mean", token_f1),
    "length": _of_rows(lambda: t("length of an answer, words"), None, 1, "replies", "mean", form.length),
    "repeats": _of_rows(lambda: t("answers that repeat themselves, %"), False, 1, "replies", "proportion",
                        form.repeats),
    "refused": _of_rows(lambda: t("answers that refuse, %"), None, 1, "replies", "proportion", form.refused),
    "thinks": _of_rows(lambda: t("answers after a thought, %"), None, 1, "thoughts", "proportion", form.thinks),
    "thought_length": _of_rows(lambda: t("length of a thought, words"), None, 1, "thoughts", "mean",
                               form.thought_length),
    "thought_seconds": _of_rows(lambda: t("time of a thought, s"), None, 2, "thoughts", "mean",
                                form.thought_seconds),
    "well_formed": _of_rows(lambda: t("thought and answer well formed, %"), True, 1, "thoughts", "proportion",
                            form.well_formed),
    "calls": _of_rows(lambda: t("calls that are right, %"), True, 1, "calls", "proportion", calls.right),
    "call_schema": _of_rows(lambda: t("calls that fit their schema, %"), True, 1, "calls", "proportion", calls.valid),
}  # fmt: skip
"""The metrics, in the order of all tables. A new one is a line here, and a row of the table in docs/*/files.md."""


def measured(need: Need, *evidence: Any) -> dict[str, float | None]:
    """The metrics of one need, by name; None where evidence is missing (None)."""
    missing = any(piece is None for piece in evidence)
    return {
        name: None if missing else metric.measure(*evidence) for name, metric in METRICS.items() if metric.needs == need
    }


def row_figures(need: Need, *evidence: Sequence[Any]) -> list[dict[str, float | None]]:
    """For each row its figures by metric: of those metrics of one need that have figures of rows.

    >>> row_figures("answers", ["a b"], ["a c"])[0]["token_f1"]
    0.0
    """
    metrics = {name: metric.by_row for name, metric in METRICS.items() if metric.needs == need and metric.by_row}
    return [{name: by_row(*row) for name, by_row in metrics.items()} for row in zip(*evidence, strict=True)]
