"""report.html of a run: what changed, shown and counted, in one file that needs no network and runs no script.

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
from markupsafe import Markup, escape

from tuneloop.base.duration import about, duration
from tuneloop.base.files import write_atomic
from tuneloop.base.language import current, is_passing, listed, t
from tuneloop.base.optional import quoted
from tuneloop.data import ledger
from tuneloop.evaluation import compare, faults
from tuneloop.evaluation.evaluation import Answer, Evaluation, ProbeResult
from tuneloop.planning.cautions import nothing_held
from tuneloop.report import chart, glossary
from tuneloop.report.run_view import Folder, clock, read, spent
from tuneloop.report.verdict import ENDS, STARTS, verdict
from tuneloop.runs.journal import Journal

OPEN_ANSWERS = 3
"""So many answers of a probe are shown at once, the rest on a click."""
LEDGER_ROWS = 12


def write(run: Path) -> Path:
    """Write report.html of a run folder in the chosen language; its path. Raises as `read` does."""
    folder = read(run)
    html = _template().render(**_context(folder))
    target = run / "report.html"
    write_atomic(target, html.encode("utf-8", "replace"))  # an answer may hold half a surrogate pair
    return target


@cache
def _template() -> Template:
    templates = Templates(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    templates.globals["t"] = t
    return templates.from_string(files("tuneloop.report").joinpath("report.html.jinja").read_text(encoding="utf-8"))


def _context(folder: Folder) -> dict[str, Any]:
    evaluation = folder.evaluation or Evaluation()
    changes = [c for c in compare.changes(evaluation) if c.measured]
    cautions = [_private(text, folder) for text in folder.cautions()]
    judged = verdict(folder.evaluation, folder.events, folder.metrics)
    if cautions and judged.tone == "good":  # what is good on a handful of rows is not a reason for green
        judged = replace(judged, tone="plain")
    return {
        "language": "zh-CN" if current() == "zh" else "en",
        "space": "" if current() == "zh" else " ",
        "name": folder.path.name,
        "subtitle": _subtitle(folder),
        "verdict": judged,
        "cautions": cautions,
        "nothing_held": nothing_held() if compare.nothing_held(evaluation) else "",
        "tiles": _tiles(folder, evaluation),
        "show": [_answer(a) for a in evaluation.show],
        "probes": [_probe(p) for p in evaluation.probes],
        "answers": [_answer(a) for a in evaluation.answers],
        "rows": evaluation.after.rows or 0,
        "label_tokens": evaluation.after.label_tokens or 0,
        "longest": (folder.recipe.get("evaluate") or {}).get("max_new_tokens"),
        "changes": [_change(c) for c in changes],
        "classes": _classes(evaluation),
        "mistakes": evaluation.mistakes,
        "texts": evaluation.after.texts or 0,
        "curve": Markup(chart.svg(chart.with_start(folder.metrics, evaluation))),
        "words": chart.words(),
        "sampled": _sampled(folder.samples),
        "data": glossary.counts({k: folder.dataset.get(k) for k in ("counts", "tokens")}),
        "dataset": folder.dataset,
        "ledger": _ledger(folder),
        "links": _links(folder),
        "plan": _planned(folder),
        "choices": folder.plan.get("choices") or [],
        "commands": _commands(folder),
        "recipe": _private(folder.recipe_text, folder),
        "events": [_event(e, folder) for e in folder.events],
        "environment": [(k, _private(v, folder)) for k, v in _environment(folder)],
    }


def _subtitle(folder: Folder) -> list[str]:
    model, train = folder.recipe.get("model") or {}, folder.recipe.get("train") or {}
    name = (folder.plan.get("model") or {}).get("name") or (model.get("name") if isinstance(model, dict) else model)
    finished = next((e.get("time") for e in reversed(folder.events) if isinstance(e.get("time"), int | float)), None)
    shown = Path(str(name)).name if name and Path(str(name)).is_absolute() else name or ""
    parts = [shown, train.get("method", ""), folder.dataset.get("name", "")]
    return [str(p) for p in (*parts, glossary.moment(finished)[:10]) if p]


def _tiles(folder: Folder, evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """(label, value, remark) of the few numbers at the top."""
    tiles = []
    changes = {c.metric: c for c in compare.changes(evaluation)}
    right = changes.get("accuracy")
    if right is not None and right.before is not None and right.after is not None:
        tiles.append((t("accuracy"), f"{100 * right.before:.0f} % → {100 * right.after:.0f} %", ""))
    pairs = changes.get("preferred")
    if pairs is not None and pairs.before is not None and pairs.after is not None:
        tiles.append((t("better answer preferred"), f"{pairs.before:.0f} % → {pairs.after:.0f} %", ""))
    loss = changes["loss"]
    if loss.before and loss.after is not None:
        percent = f"{(loss.after / loss.before - 1) * 100:+.0f}%".replace("-", "\u2212")
        tiles.append((t("held-out loss"), f"{loss.before:.2f} → {loss.after:.2f}", percent))
    if probes := evaluation.probes:
        passed = sum(probe.passed for probe in probes)
        tiles.append((t("probes passed"), f"{passed} / {len(probes)}", ""))
    seconds = spent(folder)
    if seconds:
        speeds = [v for v in clock(folder, "tokens_per_second") if v > 0]
        speed = t("{n} tokens a second", n=f"{statistics.median(speeds):,.0f}") if speeds else ""
        tiles.append((t("training time"), duration(seconds), speed))
    model = folder.plan.get("model") or {}
    if model.get("trainable"):
        share = t("of {total}", total=short(model["parameters"])) if model.get("parameters") else ""
        tiles.append((t("trained weights"), short(model["trainable"]), share))
    return tiles


def _probe(one: ProbeResult) -> dict[str, Any]:
    answers = [
        {
            "prompt": a.prompt,
            "before": marked(a.before, one.expect)[0],
            "after": marked(a.after, one.expect)[0],
            **_faults(a),
        }
        for a in one.answers
    ]
    bounds = []
    if one.at_least is not None:
        bounds.append(t("at least {n}", n=one.at_least))
    if one.at_most is not None:
        bounds.append(t("at most {n}", n=one.at_most))
    shown = {key: getattr(one, key) for key in ("name", "expect", "total", "before", "after", "passed")}
    return {**shown, "bounds": listed(bounds), "open": answers[:OPEN_ANSWERS], "more": answers[OPEN_ANSWERS:]}


def marked(text: str, pattern: str) -> tuple[Markup, bool]:
    """The text, escaped, every match of the pattern (case ignored) in <mark>; and whether there is one.

    >>> marked("I am <b>Lumi", "lumi")
    (Markup('I am &lt;b&gt;<mark>Lumi</mark>'), True)
    """
    try:
        matches = list(re.finditer(pattern, text, re.IGNORECASE))
    except re.error:
        return escape(text), False
    out, end = Markup(""), 0
    for match in matches:
        if match.end() > match.start():
            out += escape(text[end : match.start()]) + Markup("<mark>{}</mark>").format(match.group())
            end = match.end()
    return out + escape(text[end:]), bool(matches)


def _change(change: compare.Change) -> dict[str, Any]:
    kind, _, name = change.metric.partition("/")

    def number(score: float | None) -> str:
        return change.shown(score, change.digits).replace("/", " / ") or t("not measured")

    return {
        "label": change.label,
        "before": number(change.before),
        "after": number(change.after),
        "change": _signed(change.change, change.digits),
        "tone": {True: "good", False: "bad", None: "plain"}[change.better],
        "word": {True: t("better"), False: t("worse"), None: ""}[change.better],
        "part": bool(name) and kind == "loss",
    }


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


def _sampled(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each question asked during training, with its answers in the order of the steps."""
    questions: dict[str, dict[str, Any]] = {}
    for line in lines:
        one = questions.setdefault(
            line["id"], {"prompt": line["prompt"], "reference": line["reference"], "answers": []}
        )
        one["answers"].append((f"{line['step']:,}", line["answer"]))
    return list(questions.values())


def _signed(number: float | None, digits: int) -> str:
    if number is None or number == 0:
        return "" if number is None else "0"
    return f"{number:+,.{digits}f}".replace("-", "\u2212")


def _answer(one: Answer) -> dict[str, Any]:
    """An answer with the turns before its question; evaluations of earlier versions have none."""
    roles = glossary.roles()
    turns = [(roles.get(turn.role, turn.role), turn.content) for turn in one.context or ()]
    return {**one.as_dict(), "context": turns, **_faults(one)}


def _faults(one: Answer) -> dict[str, str]:
    """What is wrong with the form of an answer, in words; evaluations of earlier versions do not say."""
    return {"before_fault": faults.words(one.before_fault), "after_fault": faults.words(one.after_fault)}


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


def _planned(folder: Folder) -> list[tuple[str, str, str]]:
    """(what, planned, what happened); the latter "" where it is not known."""
    plan, steps = folder.plan, [m["step"] for m in folder.metrics if "loss" in m and isinstance(m.get("step"), int)]
    memory, seconds = clock(folder, "memory_gb"), spent(folder)
    planned, foreseen = (plan.get("data") or {}).get("steps"), plan.get("evaluation") or {}
    took = next((e.get("seconds") for e in reversed(folder.events) if e.get("event") == "evaluated"), None)
    rows = [
        (t("training time"), about(plan["seconds"]) if plan.get("seconds") else "",
         duration(seconds) if seconds else ""),
        (t("evaluation time"), about(foreseen["seconds"]) if foreseen.get("seconds") else "",
         duration(took) if took else ""),
        (t("memory at its peak"), f"{plan['memory_gb']:.1f} GB" if plan.get("memory_gb") else "",
         f"{max(memory):.1f} GB" if memory else ""),
        (t("optimizer steps"), f"{planned:,}" if planned else "", f"{max(steps):,}" if steps else ""),
    ]  # fmt: skip
    return [row for row in rows if row[1] or row[2]]


def short(number: float) -> str:
    """A large number in three digits.

    >>> short(134515008), short(4884480), short(950), short(6738415616)
    ('135 M', '4.88 M', '950', '6.74 B')
    """
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _commands(folder: Folder) -> list[tuple[str, str]]:
    name = f"{folder.path.parent.name}/{folder.path.name}"
    run, again = quoted(name), quoted(f"{name}/recipe.yaml")
    more = f" --lang {current()}" if is_passing() else ""
    last = next((e["event"] for e in reversed(folder.events) if e.get("event") in ENDS | STARTS), "finished")
    if last != "finished":
        return [(t("Take it up where it stopped"), f"tuneloop train --resume {run}{more}")]
    evaluate = [] if folder.evaluation else [(t("Measure what changed"), f"tuneloop evaluate {run}{more}")]
    return [
        *evaluate,
        (t("Talk to it"), f"tuneloop chat {run}{more}"),
        (t("Serve it to any OpenAI client"), f"tuneloop serve {run}{more}"),
        (t("Export it"), f"tuneloop export {run}{more}"),
        (t("Train again, twice as long"), f"tuneloop run {again} --set {_longer(folder)}{more}"),
    ]


def _longer(folder: Folder) -> str:
    """A setting that makes the run twice as long: where train.max_steps is set, the epochs decide nothing."""
    train = folder.recipe.get("train") or {}
    if isinstance(train.get("max_steps"), int):
        return f"train.max_steps={2 * train['max_steps']}"
    epochs = train.get("epochs")
    return f"train.epochs={2 * epochs if isinstance(epochs, int | float) else 6:g}"


def _event(event: dict[str, Any], folder: Folder) -> tuple[str, str, str]:
    rest = glossary.facts(event, skip=frozenset({"time", "event"}))
    details = listed(f"{name} {fact}" for name, fact in rest)
    what = str(event.get("event", ""))
    return glossary.moment(event.get("time")), glossary.events().get(what, what), _private(details, folder)


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
