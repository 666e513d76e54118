"""What happened when: the lines of events.jsonl in words, alerts and remedies among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.base.language import listed, sentences, t
from tuneloop.monitor.alerts import SIGNS
from tuneloop.monitor.notices import counted, notice_of, notices, tone_word
from tuneloop.report import glossary


@dataclass(frozen=True, slots=True)
class TimelineRow:
    """An event: when, what, more about it. `tone` is the level of an alert, "remedy" for a remedy, "" for the rest."""

    time: str
    tone: str
    event: str
    details: str
    why: str = ""
    do: str = ""


def timeline(events: Iterable[Mapping[str, Any]], private: Callable[[str], str]) -> list[TimelineRow]:
    """The rows of the time line in the language of now. `private` takes out of a text what is nobody's business."""
    return [_row(event, private) for event in events]


def _row(event: Mapping[str, Any], private: Callable[[str], str]) -> TimelineRow:
    notice, time = notice_of(event), glossary.moment(event.get("time"))
    if notice is None:
        rest = glossary.facts(glossary.told_in(event), skip=frozenset({"time", "event"}))
        details = listed(f"{name} {fact}" for name, fact in rest)
        what = str(event.get("event", ""))
        return TimelineRow(time, "", glossary.events().get(what, what), private(details))
    words = notice.words()
    chip = f"{SIGNS[notice.tone]} {tone_word(notice.tone)}"
    code = "" if notice.tone == "good" else f" ({notice.source.code})"
    what, why, do = (private(text) for text in (words.what + code, words.why, words.do))
    if notice.tone == "good":  # nothing is left to do
        why = do = ""
    details = what if notice.tone == "remedy" else t("{place}: {what}", place=notice.place(), what=what)
    return TimelineRow(time, notice.tone, chip, details, why, do)


def opened(events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the time line holds something that a reader should see without a click."""
    return any(n.tone in ("watch", "bad", "remedy") for n in notices(events))


def summary(events: Sequence[Mapping[str, Any]]) -> str:
    """A sentence for the top of the page, where the run had bad alerts or remedies; else ""."""
    _, bad, mended = counted(notices(events))
    return sentences(
        t("Bad alerts while it trained: {n}.", n=bad) if bad else "",
        t("Times that it mended itself and went on: {n}.", n=mended) if mended else "",
    )
