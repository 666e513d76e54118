"""Marks on the loss curve of the report where an alert was raised or a remedy was taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import escape

from tuneloop.base.language import in_each, t
from tuneloop.monitor.alerts import SIGNS, Tone
from tuneloop.monitor.notices import Notice, notices, tone_word

NEAR = 14.0
"""Units of the picture within which marks are drawn as one."""
WORST_LAST: tuple[Tone, ...] = ("note", "watch", "bad", "remedy")


@dataclass(frozen=True, slots=True)
class CurveMark:
    """A place on the curve: the step, its tone, and its words, all languages in a row."""

    step: int
    tone: Tone
    title: str


def curve_marks(events: Iterable[Mapping[str, Any]]) -> list[CurveMark]:
    """The marks of the lines of events.jsonl; that something is over is none."""
    return [CurveMark(n.step, n.tone, _title(n)) for n in notices(events) if n.tone != "good"]


def legend(events: Iterable[Mapping[str, Any]]) -> list[tuple[Tone, str, str]]:
    """(tone, sign, word) of each tone that is marked."""
    there = {one.tone for one in curve_marks(events)}
    return [(tone, SIGNS[tone], tone_word(tone)) for tone in WORST_LAST if tone in there]


def _title(notice: Notice) -> str:
    words = in_each(lambda: f"{t('step {step}', step=f'{notice.step:,}')}  {notice.words().what}")
    return " / ".join(dict.fromkeys(words.values()))


def drawn(marks: Iterable[CurveMark], across: Callable[[float], float], top: float, bottom: float) -> list[str]:
    """SVG of the marks: a line from `bottom` to `top` and a sign above it. `across` gives the place of a step.

    Of marks that lie too near to each other the gravest is drawn, with the words of all; a bad alert and what was done
    about it both are.
    """
    groups: list[list[CurveMark]] = []
    for one in sorted(marks, key=lambda m: m.step):
        if groups and across(one.step) - across(groups[-1][0].step) < NEAR:
            groups[-1].append(one)
        else:
            groups.append([one])
    return [_group(group, across, top, bottom) for group in groups]


def _group(group: list[CurveMark], across: Callable[[float], float], top: float, bottom: float) -> str:
    gravest = max(group, key=lambda m: WORST_LAST.index(m.tone))
    x, title = across(gravest.step), escape("\n".join(m.title for m in group))
    signs = (
        "".join(SIGNS[tone] for tone in ("bad", "remedy") if any(m.tone == tone for m in group)) or SIGNS[gravest.tone]
    )
    return (
        f'<g class="mark {gravest.tone}"><title>{title}</title><path d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>'
        f'<text x="{x:.1f}" y="{top - 3:.1f}" text-anchor="middle">{signs}</text></g>'
    )
