"""The rows of the tables of several runs, as console and report show them."""

from __future__ import annotations

from tuneloop.base.duration import duration
from tuneloop.base.language import t
from tuneloop.evaluation.general_set import section_title
from tuneloop.evaluation.intervals import Estimate, notes
from tuneloop.evaluation.metrics import METRICS
from tuneloop.evaluation.paired import Paired
from tuneloop.report import gains
from tuneloop.report.compared import ComparedRuns
from tuneloop.report.costs import Cost, short

Row = tuple[str, ...]


def figures(compared: ComparedRuns) -> list[Row]:
    """Metric, then of each run its figure, its interval, and how it stands to the first run."""
    out = []
    for one in compared.figures:
        metric = METRICS[one.metric]
        label = metric.label()
        if one.section:
            label = t("{section}: {metric}", section=section_title(one.section), metric=label)
        cells = [
            _figure(estimate, pair if metric.higher_is_better is not None else None, metric.digits)
            for estimate, pair in zip(one.estimates, one.against_first, strict=True)
        ]
        out.append((label, *cells))
    return [*out, *_probes(compared)]


def _probes(compared: ComparedRuns) -> list[Row]:
    """Of each probe the answers that match, in each run."""
    counts = [{probe.name: f"{probe.after}/{probe.total}" for probe in run.evaluation.probes} for run in compared.runs]
    names = dict.fromkeys(name for one in counts for name in one)
    return [(t('answers that match "{name}"', name=name), *(one.get(name, "–") for one in counts)) for name in names]


def _figure(estimate: Estimate, pair: Paired | None, digits: int) -> str:
    if estimate.estimate is None:
        return notes().get(estimate.note, estimate.note) or "–"
    words = "" if pair is None else pair.word
    parts = [gains.shown(estimate.estimate, digits), gains.interval(estimate, digits), words]
    return " ".join(part for part in parts if part)


def costs(compared: ComparedRuns) -> list[Row]:
    """What each run cost; beside it, in brackets, its share of what the first one cost."""
    first = compared.runs[0].cost
    rows: list[Row] = []
    for label, read, words in (
        (t("training time"), lambda one: one.seconds, duration),
        (t("one epoch"), _epoch, duration),
        (t("memory at its peak"), lambda one: one.memory_gb, lambda amount: f"{amount:.2f} GB"),
        (t("tokens trained on"), lambda one: one.tokens, lambda amount: f"{amount:,}"),
        (t("trained weights"), lambda one: one.trained, short),
    ):
        amounts = [read(run.cost) for run in compared.runs]
        if any(amount is not None for amount in amounts):
            base = read(first)
            rows.append((label, *(_cost(amount, base, words, k) for k, amount in enumerate(amounts))))
    return rows


def _epoch(one: Cost) -> float | None:
    return one.seconds / one.epochs if one.seconds and one.epochs else None


def _cost(amount: float | None, base: float | None, words: object, place: int) -> str:
    if amount is None:
        return "–"
    assert callable(words)
    share = f" ({100 * amount / base:.0f} %)" if place and base else ""
    return f"{words(amount)}{share}"


def settings(compared: ComparedRuns) -> list[Row]:
    """The keys that not all recipes have alike."""
    keys = compared.runs[0].settings if compared.runs else {}
    return [(key, *(run.settings[key] for run in compared.runs)) for key in keys]
