"""report.html of a run: what changed, shown and counted, in one file with both languages, no network and no script.

Only reads the run folder (and the dataset folder that it names); a part that is not there is left out.
"""

from __future__ import annotations

import os
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment as Templates
from jinja2 import StrictUndefined, Template
from markupsafe import Markup

from tuneloop.base.duration import duration
from tuneloop.base.files import write_atomic
from tuneloop.base.language import current, is_passing, listed, t
from tuneloop.base.optional import quoted
from tuneloop.data import ledger
from tuneloop.evaluation import compare
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.flips import flips
from tuneloop.evaluation.paired import too_few
from tuneloop.evaluation.task_scores import TaskScore
from tuneloop.monitor.notices import notices
from tuneloop.planning.cautions import nothing_held
from tuneloop.report import answers, bilingual, chart, comparison_file, costs, gains, glossary, timeline
from tuneloop.report.marks import curve_marks, legend
from tuneloop.report.run_view import Folder, clock, read, spent
from tuneloop.report.verdict import ENDS, STARTS, verdict
from tuneloop.runs.journal import Journal

LEDGER_ROWS = 12
FLIPS = 10
"""Rows that became worse which are shown, the worst of them."""
HEADLINES = {"accuracy": True, "preferred": False, "loss": False}
"""Metrics at the top of the page -> whether they are shown as a percentage."""


def write(run: Path) -> Path:
    """Write report.html of a run folder, which opens in the chosen language; its path. Raises as `read` does."""
    folder = read(run)
    more = f" --lang {current()}" if is_passing() else ""
    context = bilingual.in_both(lambda: _context(folder, more))
    html = _template().render(chosen=current(), tags=bilingual.TAGS, **context)
    target = run / "report.html"
    write_atomic(target, html.encode("utf-8", "replace"))  # an answer may hold half a surrogate pair
    return target


@cache
def _template() -> Template:
    templates = Templates(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    templates.globals["t"] = bilingual.words
    return templates.from_string(files("tuneloop.report").joinpath("report.html.jinja").read_text(encoding="utf-8"))


def _context(folder: Folder, more: str) -> dict[str, Any]:
    """What the template is given in the language of now; `more` goes behind each command."""
    evaluation = folder.evaluation or Evaluation()
    blank = "" if current() == "zh" else " "
    faults = [f"{one.code}  {one.what}{blank}{one.do}" for one in evaluation.findings]
    cautions = [*faults, *(_private(text, folder) for text in folder.cautions())]
    fallen = flips(evaluation)
    judged = verdict(folder.evaluation, folder.events, folder.metrics)
    if cautions and judged.tone == "good":  # what is good on a handful of rows is not a reason for green
        judged = replace(judged, tone="plain")
    return {
        "space": blank,
        "name": folder.path.name,
        "subtitle": _subtitle(folder),
        "verdict": judged,
        "cautions": cautions,
        "nothing_held": nothing_held() if compare.nothing_held(evaluation) else "",
        "tiles": _tiles(folder, evaluation),
        "claims": comparison_file.shown(folder.path),
        "show": [answers.answer(a) for a in evaluation.show],
        "probes": [answers.probe(p) for p in evaluation.probes],
        "answers": [answers.answer(a) for a in evaluation.answers],
        "rows": evaluation.after.rows or 0,
        "label_tokens": evaluation.after.label_tokens or 0,
        "longest": (folder.recipe.get("evaluate") or {}).get("max_new_tokens"),
        "changes": gains.numbers(evaluation),
        "ranged": bool(evaluation.paired),
        "too_few": too_few(max((p.difference.rows for p in evaluation.paired if not p.section), default=0)),
        "few": any(p.difference.note == "few rows" for p in evaluation.paired),
        "sections": gains.others(evaluation),
        "tasks": [(one.task, one.metric, *_scores(one), f"{one.rows:,}") for one in evaluation.tasks],
        "flips": [answers.flip(one) for one in fallen[:FLIPS]],
        "flipped": len(fallen),
        "forgetting": gains.forgetting(evaluation),
        "classes": _classes(evaluation),
        "mistakes": evaluation.mistakes,
        "texts": evaluation.after.texts or 0,
        "curve": Markup(chart.svg(chart.with_start(folder.metrics, evaluation), curve_marks(folder.events))),
        "marked": legend(folder.events),
        "noticed": timeline.summary(folder.events),
        "words": chart.words(),
        "epochs": costs.epochs(folder.metrics),
        "sampled": answers.sampled(folder.samples),
        "data": glossary.counts({k: folder.dataset.get(k) for k in ("counts", "tokens")}),
        "dataset": folder.dataset,
        "ledger": _ledger(folder),
        "links": _links(folder),
        "plan": costs.planned(folder),
        "choices": (folder.plan.get("choices_in") or {}).get(current()) or folder.plan.get("choices") or [],
        "commands": _commands(folder, more),
        "recipe": _private(folder.recipe_text, folder),
        "events": timeline.timeline(folder.events, lambda text: _private(text, folder)),
        "events_open": timeline.opened(folder.events),
        "environment": [(k, _private(v, folder)) for k, v in _environment(folder)],
    }


def _scores(one: TaskScore) -> tuple[str, str]:
    """A task's score before and after."""
    first, last = (t("not measured") if score is None else f"{score:.3f}" for score in (one.before, one.after))
    return first, last


def _subtitle(folder: Folder) -> list[str]:
    model, train = folder.recipe.get("model") or {}, folder.recipe.get("train") or {}
    name = (folder.plan.get("model") or {}).get("name") or (model.get("name") if isinstance(model, dict) else model)
    finished = next((e.get("time") for e in reversed(folder.events) if isinstance(e.get("time"), int | float)), None)
    shown = Path(str(name)).name if name and Path(str(name)).is_absolute() else name or ""
    parts = [shown, train.get("method", ""), folder.dataset.get("name", "")]
    return [str(p) for p in (*parts, glossary.moment(finished)[:10]) if p]


def _tiles(folder: Folder, evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """(label, figure, remark) of the few numbers at the top."""
    tiles = []
    changes = {c.metric: c for c in compare.changes(evaluation)}
    for metric, percent in HEADLINES.items():
        change = changes.get(metric)
        if change is None or change.before is None or change.after is None:
            continue
        digits, scale = (0, 100) if percent else (change.digits - 1, 1) if metric == "loss" else (0, 1)
        unit = " %" if percent or metric == "preferred" else ""
        pair = f"{scale * change.before:.{digits}f}{unit} → {scale * change.after:.{digits}f}{unit}"
        label = t("better answer preferred") if metric == "preferred" else change.label
        tiles.append((label, pair, _gain(evaluation, change)))
    if probes := evaluation.probes:
        passed = sum(probe.passed for probe in probes)
        tiles.append((t("probes passed"), f"{passed} / {len(probes)}", ""))
    seconds = spent(folder)
    if seconds:
        pace = _pace(folder)
        speed = t("{n} tokens a second", n=f"{pace:,.0f}") if pace else ""
        tiles.append((t("training time"), duration(seconds), speed))
    model = folder.plan.get("model") or {}
    if model.get("trainable"):
        share = t("of {total}", total=costs.short(model["parameters"])) if model.get("parameters") else ""
        tiles.append((t("trained weights"), costs.short(model["trainable"]), share))
    return tiles


def _pace(folder: Folder) -> float:
    """Tokens a second of training: what the end of an unbroken run says, else the median of its lines; 0 unknown."""
    finished = next((e for e in folder.events if e.get("event") == "finished"), {})
    whole_run = finished.get("tokens_per_second")
    if isinstance(whole_run, int | float) and not any(e.get("event") == "resumed" for e in folder.events):
        return float(whole_run)
    return statistics.median([v for v in clock(folder, "tokens_per_second") if v > 0] or [0.0])


def _gain(evaluation: Evaluation, change: compare.Change) -> str:
    """By how much a metric changed: with its interval, rows and separation where they are known."""
    pair = next((p for p in evaluation.paired if (p.metric, p.section) == (change.metric, "")), None)
    if pair is not None and pair.difference.estimate is not None:
        digits = change.digits
        parts = [
            f"{gains.signed(pair.difference.estimate, digits)} {gains.interval(pair.difference, digits)}".strip(),
            t("{n} rows", n=f"{pair.difference.rows:,}"),
            *([p] if (p := gains.probability(pair)) else []),
            *([] if pair.separation in ("better", "worse") else [pair.word]),
        ]
        return listed(parts)
    if change.metric == "loss" and change.before and change.after is not None:
        return f"{(change.after / change.before - 1) * 100:+.0f}%".replace("-", "\u2212")
    return ""


def _classes(evaluation: Evaluation) -> dict[str, Any]:
    """The classes of a classifier, before and after; {} for a model that writes."""
    classes = evaluation.classes
    if classes is None:
        return {}
    before, after = classes.before, classes.after

    def pair(k: int, key: str) -> str:
        return f"{getattr(before.each[k], key):.3f} → {getattr(after.each[k], key):.3f}"

    def cells(matrix: Sequence[Sequence[int]], row: int) -> list[tuple[int, int, bool]]:
        most = max(1, sum(matrix[row]))
        return [(n, round(70 * n / most), k == row) for k, n in enumerate(matrix[row])]

    matrices = [
        (title, [(label, cells(scores.confusion, k)) for k, label in enumerate(classes.labels)])
        for scores, title in ((before, t("Before")), (after, t("After")))
    ]
    each = [
        {"label": label, "texts": after.each[k].texts, **{key: pair(k, key) for key in ("precision", "recall", "f1")}}
        for k, label in enumerate(classes.labels)
    ]
    return {"labels": classes.labels, "fresh": compare.fresh(evaluation), "each": each, "matrices": matrices}


def _ledger(folder: Folder) -> list[tuple[int, str, str, str]]:
    """(rows, action, step, reason) of the dataset's ledger, the most frequent first."""
    path = folder.dataset_path
    if path is None:
        return []
    lines = list(Journal(path / "ledger.jsonl").lines())
    counted = Counter((str(x.get("action", "")), str(x.get("step", "")), str(x.get("reason", ""))) for x in lines)
    actions, reasons, steps = glossary.actions(), ledger.words(), ledger.steps()
    rows = [
        (n, actions.get(action, action), steps.get(step, step), reasons.get(why, why))
        for (action, step, why), n in counted.most_common()
    ]
    rest = sum(n for n, *_ in rows[LEDGER_ROWS:])
    return rows[:LEDGER_ROWS] + ([(rest, "", "", t("other reasons, see the ledger"))] if rest else [])


def _links(folder: Folder) -> list[tuple[str, str]]:
    """(text, address) of the dataset's own pages, relative to the run folder so that a moved workspace still works."""
    path = folder.dataset_path
    if path is None:
        return []
    pages = (("card.html", t("data card")), ("ledger.jsonl", t("ledger, row by row")), ("manifest.json", t("manifest")))
    return [(text, _address(path / page, folder.path)) for page, text in pages if (path / page).is_file()]


def _address(target: Path, start: Path) -> str:
    try:
        return quote(Path(os.path.relpath(target, start)).as_posix())
    except ValueError:  # another drive on Windows
        return target.resolve().as_uri()


def _commands(folder: Folder, more: str) -> list[tuple[str, str]]:
    name = f"{folder.path.parent.name}/{folder.path.name}"
    run, again = quoted(name), quoted(f"{name}/recipe.yaml")
    last = next((e["event"] for e in reversed(folder.events) if e.get("event") in ENDS | STARTS), "finished")
    if last != "finished":
        return [(t("Take it up where it stopped"), f"tuneloop train --resume {run}{more}")]
    evaluate = [] if folder.evaluation else [(t("Measure what changed"), f"tuneloop evaluate {run}{more}")]
    return [
        *evaluate,
        (t("Talk to it"), f"tuneloop chat {run}{more}"),
        (t("Serve it to any OpenAI client"), f"tuneloop serve {run}{more}"),
        (t("Export it"), f"tuneloop export {run}{more}"),
        (t("Train again, twice as long"), f"tuneloop run {again} --set {_longer(folder)}{_lowered(folder)}{more}"),
    ]


def _longer(folder: Folder) -> str:
    """A setting that makes the run twice as long: where train.max_steps is set, the epochs decide nothing."""
    train = folder.recipe.get("train") or {}
    if isinstance(train.get("max_steps"), int):
        return f"train.max_steps={2 * train['max_steps']}"
    epochs = train.get("epochs")
    return f"train.epochs={2 * epochs if isinstance(epochs, int | float) else 6:g}"


def _lowered(folder: Folder) -> str:
    """The learning rate that a remedy came to, as another setting; "" where none lowered it."""
    rates = [n.source.facts.get("rate") for n in notices(folder.events) if n.tone == "remedy" and n.name == "spike"]
    return f" --set train.learning_rate={rates[-1]:.2g}" if rates and isinstance(rates[-1], float) else ""


def _environment(folder: Folder) -> list[tuple[str, str]]:
    started = next((e for e in folder.events if e.get("event") == "started"), {})
    machine = {"memory_all_gb" if k == "memory_gb" else k: v for k, v in (folder.plan.get("machine") or {}).items()}
    return glossary.facts({**machine, **started}, skip=frozenset({"time", "event", "step", "total"}))


def _private(text: str, folder: Folder) -> str:
    """Paths inside the workspace made relative to it, and the home folder "~": a report is made to be shown around."""
    for prefix, instead in ((folder.workspace, ""), (Path.home(), "~/")):
        if len(prefix.parts) > 1:
            text = re.sub(rf"(?<![\w./~-]){re.escape(str(prefix))}[/\\]", instead, text)
    return text
