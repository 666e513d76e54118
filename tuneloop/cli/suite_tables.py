"""The tables of the suite beside the held-out rows: its sections, tasks, what was forgotten, and what is wrong."""

from __future__ import annotations

from tuneloop.base.language import current, t
from tuneloop.cli.show import number, table
from tuneloop.evaluation import compare, forgetting
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.general_set import section_title


def beside(evaluation: Evaluation) -> None:
    """The general set, the user's own files and the tasks, before and after."""
    pairs = [pair for pair in evaluation.paired if pair.section.startswith(("general/", "file/"))]
    words = {
        "better": t("better"),
        "worse": t("worse"),
        "not separable": t("not separable"),
        "not defined": t("not defined"),
    }
    rows = [
        (
            section_title(pair.section),
            compare.Change(pair.metric, None, None, None, None).label,
            number(pair.before.estimate),
            number(pair.after.estimate),
            number(pair.difference.estimate),
            words[pair.separation],
        )
        for pair in pairs
        if pair.metric in {"loss", "accuracy", "chrf"}
    ]
    if rows:
        head = [t("rows"), t("measure"), t("before"), t("after"), t("change"), ""]
        table(t("Beside the held-out rows"), head, rows)
    tasks = [(s.task, s.metric, number(s.before), number(s.after), s.rows) for s in evaluation.tasks]
    if tasks:
        table(t("Tasks of lm-evaluation-harness"), [t("task"), t("measure"), t("before"), t("after"), t("rows")], tasks)
    if evaluation.forgetting is not None:
        print(forgetting.sentence(evaluation.forgetting))


def served(evaluation: Evaluation) -> None:
    """What an endpoint scores: figures that need only answers."""
    after = evaluation.after
    rows = [
        (compare.Change(name, None, None, None, None).label, number(figure) if figure is not None else unmeasured(name))
        for name, figure in after.metrics.items()
    ]
    rows += [(change.label, change.shown(change.after)) for change in compare.changes(evaluation) if change.total]
    table(t("What the endpoint scores"), [t("measure"), ""], rows)


def unmeasured(metric: str) -> str:
    """Why an endpoint has no figure for a metric."""
    if metric in {"loss", "perplexity"}:
        return t("not measured: an endpoint gives no loss")
    return t("not measured")


def faults(evaluation: Evaluation) -> list[str]:
    """The findings of a diagnosis, each with its code, and what to do."""
    blank = "" if current() == "zh" else " "
    return [f"{finding.code}  {finding.what}{blank}{finding.do}" for finding in evaluation.findings]
