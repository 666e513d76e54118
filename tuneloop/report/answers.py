"""Answers as the report shows them: before and after side by side, what differs and what matches marked."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from tuneloop.base.language import listed, t
from tuneloop.evaluation import faults
from tuneloop.evaluation.evaluation import Answer, ProbeResult
from tuneloop.evaluation.flips import Flip
from tuneloop.evaluation.general_set import section_title
from tuneloop.evaluation.metrics import METRICS
from tuneloop.report import differences, glossary

OPEN_ANSWERS = 3
"""So many answers of a probe are shown at once, the rest on a click."""


def answer(one: Answer) -> dict[str, Any]:
    """An answer with the turns before its question; evaluations of earlier versions have none."""
    roles = glossary.roles()
    turns = [(roles.get(turn.role, turn.role), turn.content) for turn in one.context or ()]
    return {"prompt": one.prompt, **_pair(one.before, one.after, one.reference), "context": turns, **_faults(one)}


def _pair(before: str, after: str, reference: str) -> dict[str, Any]:
    """Two answers with their differing words marked, as far as a page shows them, and the reference."""
    cut = {
        name: differences.bounded(text)
        for name, text in (("before", before), ("after", after), ("reference", reference))
    }
    first, last = _marked_words(cut["before"][0], cut["after"][0])
    more = {f"{name}_more": f"{n:,}" if n else "" for name, (_, n) in cut.items()}
    return {"before": first, "after": last, "reference": cut["reference"][0], **more}


_marked_words = lru_cache(maxsize=512)(differences.marked_words)
"""A report is made once a language; which words differ is the same."""


def flip(one: Flip) -> dict[str, Any]:
    """A row that became worse: its answers, by what it is judged, and where it stands."""
    metric = METRICS.get(one.metric)
    fell = f"{one.before_score:.0f} → {one.after_score:.0f}"
    score = (
        t("right before, wrong after") if one.right_to_wrong else f"{metric.label() if metric else one.metric} {fell}"
    )
    place = [section_title(one.section)] if one.section else []
    if one.file:
        name = Path(one.file).name
        place.append(t("{file}, line {line}", file=name, line=one.line) if one.line else name)
    empty = {"before_fault": "", "after_fault": "", "context": []}
    pair = _pair(one.before, one.after, one.reference)
    return {"prompt": one.question, **pair, **empty, "score": score, "place": listed(place)}


def probe(one: ProbeResult) -> dict[str, Any]:
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
    return {**shown, "bounds": _wanted(bounds), "open": answers[:OPEN_ANSWERS], "more": answers[OPEN_ANSWERS:]}


def _wanted(bounds: list[str]) -> str:
    """The bounds of a probe in brackets, "" for none."""
    words = t("wanted: {bounds}", bounds=listed(bounds)) if bounds else ""
    return t("({words})", words=words) if words else ""


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


def sampled(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each question asked during training, with its answers in the order of the steps."""
    questions: dict[str, dict[str, Any]] = {}
    for line in lines:
        one = questions.setdefault(
            line["id"], {"prompt": line["prompt"], "reference": line["reference"], "answers": []}
        )
        one["answers"].append((f"{line['step']:,}", line["answer"]))
    return list(questions.values())


def _faults(one: Answer) -> dict[str, str]:
    """What is wrong with the form of an answer, in words; evaluations of earlier versions do not say."""
    return {"before_fault": faults.words(one.before_fault), "after_fault": faults.words(one.after_fault)}
