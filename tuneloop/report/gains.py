"""What was gained and what was forgotten: figures with their intervals, as the report's tables show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tuneloop.base.language import t
from tuneloop.evaluation import compare
from tuneloop.evaluation import forgetting as forgotten
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.forgetting import Forgetting
from tuneloop.evaluation.general_set import section_title
from tuneloop.evaluation.intervals import Estimate, notes
from tuneloop.evaluation.metrics import METRICS
from tuneloop.evaluation.paired import SOURCE, Paired, Separation, p_shown

GENERAL = "general/"
"""Sections of the suite that ask what every model should know: what they lost was forgotten."""
FORGOT = {"forgot": "bad", "improved": "good"}
TONES: dict[Separation, str] = {"better": "good", "worse": "bad", "not separable": "plain", "not defined": "plain"}


def numbers(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The rows of the table of the held-out rows: each metric, with intervals where there are some."""
    pairs = {(pair.metric, pair.section): pair for pair in evaluation.paired}
    rows = []
    for change in compare.changes(evaluation):
        kind, _, file = change.metric.partition("/")
        if change.measured:
            rows.append(_row(change, pairs.get((kind, f"{SOURCE}{file}" if file else ""))))
    return rows


def others(evaluation: Evaluation) -> list[tuple[str, list[dict[str, Any]]]]:
    """(title, rows) of each section of the user's own files and of other suites' tasks."""
    elsewhere = ("general", SOURCE)  # both stand in tables of their own
    sections = dict.fromkeys(p.section for p in evaluation.paired if p.section and not p.section.startswith(elsewhere))
    return [(section_title(name), [_of_pair(p) for p in evaluation.paired if p.section == name]) for name in sections]


def forgetting(evaluation: Evaluation) -> dict[str, Any]:
    """The general set: {} where it was not measured, else a sentence, its tone, and a row for each section's loss.

    `bars` of a row are percentages of a common scale: where the interval begins, its length, the figure; None of a
    section that judges nothing.
    """
    pairs = [p for p in evaluation.paired if p.section.startswith(GENERAL)]
    losses = [p for p in pairs if p.metric == "loss"]
    losses.sort(key=lambda p: not p.section.startswith(forgotten.FACTS))
    forgot = evaluation.forgetting or forgotten.forgetting(evaluation.row_scores)
    if not losses and forgot is None:
        return {}
    judged = [p for p in losses if p.section.startswith(forgotten.FACTS)]
    known = [b for p in judged for b in (p.difference.low, p.difference.high, p.difference.estimate) if b is not None]
    low, high = min([0.0, *known]), max([forgotten.MARGIN, *known])
    pad = 0.06 * (high - low)
    low, high = low - pad, high + pad

    def at(number: float) -> float:
        return round(100 * (number - low) / (high - low), 2)

    rows = [
        {
            **_of_pair(p),
            "label": section_title(p.section),
            "tone": _tone(p, forgot),
            "bars": _bars(p, at) if p in judged else None,
        }
        for p in losses
    ]
    answers = [
        {
            **_of_pair(p),
            "label": t("{section}: {metric}", section=section_title(p.section), metric=METRICS[p.metric].label()),
        }
        for p in pairs
        if p.metric not in ("loss", "perplexity")
    ]
    words = forgotten.sentence(forgot) if forgot is not None else ""
    tone = FORGOT.get(forgot.verdict, "plain") if forgot is not None else "plain"
    places = {"zero": at(0.0), "margin": at(forgotten.MARGIN)}
    return {"sentence": words, "tone": tone, "rows": rows, "answers": answers, **places}


def _tone(pair: Paired, forgot: Forgetting | None) -> str:
    """Bad is what was forgotten: other losses of the general set move with every change of manner."""
    if forgot is not None and pair.section in forgot.forgot:
        return "bad"
    return "plain" if pair.separation == "worse" else TONES[pair.separation]


def _bars(pair: Paired, at: Callable[[float], float]) -> dict[str, float] | None:
    change = pair.difference
    if change.estimate is None:
        return None
    left, right = (change.estimate if bound is None else bound for bound in (change.low, change.high))
    return {"left": at(left), "width": max(0.6, at(right) - at(left)), "at": at(change.estimate)}


def probability(pair: Paired) -> str:
    """The p-value of a difference that can be better or worse, "" of any other."""
    known = pair.p is not None and pair.separation != "not defined"
    return f"p {p if '<' in (p := p_shown(pair.p)) else f'= {p}'}" if known else ""


def interval(estimate: Estimate, digits: int) -> str:
    """The bounds of an estimate, "" where it has none.

    >>> interval(Estimate(0.5, -0.25, 0.75, 60, "bca"), 2), interval(Estimate(0.5), 2)
    ('[−0.25, 0.75]', '')
    """
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{shown(estimate.low, digits)}, {shown(estimate.high, digits)}]"


def shown(number: float, digits: int) -> str:
    """A figure with a true minus sign, and none before a zero."""
    text = f"{number:,.{digits}f}"
    return (text.lstrip("-") if not float(text.replace(",", "")) else text).replace("-", "\u2212")


def signed(number: float | None, digits: int) -> str:
    """A change with its sign; "" for none.

    >>> signed(0.5, 1), signed(-0.5, 1), signed(0, 1), signed(None, 1)
    ('+0.5', '−0.5', '0', '')
    >>> signed(-0.001, 2)
    '0.00'
    """
    if number is None or number == 0:
        return "" if number is None else "0"
    text = f"{number:+,.{digits}f}"
    return (text if float(text.replace(",", "")) else text[1:]).replace("-", "\u2212")


def _of_pair(pair: Paired) -> dict[str, Any]:
    """A row of a metric that has no other place than `paired`."""
    metric = METRICS[pair.metric]
    change = compare.Change(pair.metric, pair.before.estimate, pair.after.estimate, pair.difference.estimate, None)
    return {**_row(change, pair), "label": metric.label()}


def _row(change: compare.Change, pair: Paired | None) -> dict[str, Any]:
    kind, _, name = change.metric.partition("/")
    digits = change.digits

    def number(score: float | None) -> str:
        return change.shown(score, digits).replace("/", " / ").replace("-", "\u2212") or t("not measured")

    row = {
        "label": change.label,
        "before": number(change.before),
        "after": number(change.after),
        "change": signed(change.change, digits),
        "tone": {True: "good", False: "bad", None: "plain"}[change.better],
        "word": {True: t("better"), False: t("worse"), None: ""}[change.better],
        "part": bool(name) and kind == "loss",
        "ranges": ("", "", ""),
        "rows": "",
        "p": "",
        "why": "",
    }
    if pair is None:
        return row
    return {
        **row,
        "change": signed(pair.difference.estimate, digits) or row["change"],
        "tone": TONES[pair.separation],
        "word": "" if METRICS[pair.metric].higher_is_better is None else pair.word,
        "ranges": tuple(interval(one, digits) for one in (pair.before, pair.after, pair.difference)),
        "rows": t("{n} rows", n=f"{pair.difference.rows:,}") if pair.difference.rows else "",
        "p": probability(pair),
        "why": notes().get(pair.difference.note, "") if pair.difference.estimate is None else "",
    }
