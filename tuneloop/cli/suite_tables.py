"""The tables of the suite beside the held-out rows: its sections, tasks, what was forgotten, and what is wrong."""

from __future__ import annotations

from tuneloop.base.language import t
from tuneloop.cli.show import number, table
from tuneloop.evaluation import compare, forgetting
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.general_set import section_title


def beside(evaluation: Evaluation) -> None:
    """The general set, the user's own files and the tasks, before and after."""
    pairs = [pair for pair in evaluation.paired if pair.section.startswith(("general/", "file/"))]
    rows = [
        (
            section_title(pair.section),
            t("loss of right answers") if pair.metric == "loss" else _label(pair.metric),
            number(pair.before.estimate),
            number(pair.after.estimate),
            number(pair.difference.estimate),
            pair.difference.bounds,
            pair.word,
        )
        for pair in pairs
        if pair.metric in {"loss", "accuracy", "chrf"}
    ]
    if rows:
        head = [t("rows"), t("measure"), t("before"), t("after"), t("change"), t("95 % interval"), ""]
        table(t("Beside the held-out rows"), head, rows)
    tasks = [(s.task, s.metric, number(s.before), number(s.after), s.rows) for s in evaluation.tasks]
    if tasks:
        table(t("Tasks of lm-evaluation-harness"), [t("task"), t("measure"), t("before"), t("after"), t("rows")], tasks)
    if evaluation.forgetting is not None:
        print(forgetting.sentence(evaluation.forgetting))


def served(evaluation: Evaluation, own: Evaluation | None) -> None:
    """What an endpoint scores, figures that need only answers, beside what the run itself scored after training."""
    rows = [
        (_label(name), number(own.after[name]) if own else "", unmeasured(name) if figure is None else number(figure))
        for name, figure in evaluation.after.metrics.items()
    ]
    mine = {change.metric: change for change in compare.changes(own)} if own else {}
    for change in compare.changes(evaluation):
        if change.total:
            beside = mine.get(change.metric)
            rows.append((change.label, beside.shown(beside.after) if beside else "", change.shown(change.after)))
    table(t("What the endpoint scores"), [t("measure"), t("the run"), t("the endpoint")], rows)


def _label(metric: str) -> str:
    return compare.Change(metric, None, None, None, None).label


def unmeasured(metric: str) -> str:
    """Why an endpoint has no figure for a metric."""
    if metric in {"loss", "perplexity"}:
        return t("not measured: an endpoint gives no loss")
    return t("not measured")
