"""What a rule has seen going on in a run, and the words for it. The words lie in messages/<language>/watch.toml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tuneloop.base.errors import catalogue, filled
from tuneloop.base.language import current, t

Level = Literal["good", "note", "watch", "bad"]
Tone = Literal["good", "note", "watch", "bad", "remedy"]
"""A level of an alert, or that it is a remedy."""
LEVELS: tuple[Level, ...] = ("good", "note", "watch", "bad")
"""From harmless to bad. "good" ends an alert: what it was about is over."""
SIGNS: dict[Tone, str] = {"good": "✓", "note": "i", "watch": "!", "bad": "✗", "remedy": "↻"}
"""What stands before an alert or a remedy wherever people read it; `cli/signs.py` has letters for poor terminals."""


@dataclass(frozen=True, slots=True)
class NoticeWords:
    """An alert or a remedy in one language: what goes on or was done, why, what to try. Each one or two sentences."""

    what: str
    why: str
    do: str


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule has begun, has become worse, or ("good") is over.

    `step` is the optimizer step whose line showed it, `since` the step from which on it holds; `facts` are JSON values
    that fill the words.
    """

    rule: str
    level: Level
    step: int
    since: int
    facts: dict[str, Any]

    @property
    def code(self) -> str:
        """What `tuneloop explain` knows it by."""
        return f"TL-WATCH-{self.rule.upper()}"

    def as_event(self) -> dict[str, Any]:
        """The fields of its line in events.jsonl, beside `time` and `event`."""
        return {
            "rule": self.rule,
            "level": self.level,
            "step": self.step,
            "since": self.since,
            "facts": self.facts,
        }

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Alert:
        """The alert of a line of events.jsonl. KeyError, ValueError or TypeError where the line is none."""
        rule, level, step, since = line["rule"], line["level"], line["step"], line["since"]
        if not (isinstance(rule, str) and level in LEVELS and type(step) is int and type(since) is int):
            raise ValueError(f"no alert: {line}")
        return cls(rule, level, step, since, dict(line["facts"]))


def level_word(level: Level) -> str:
    """The level in the current language.

    >>> level_word("watch")
    'watch'
    """
    return {"good": t("good"), "note": t("note"), "watch": t("watch"), "bad": t("bad")}[level]


def words(alert: Alert) -> NoticeWords:
    """What an alert says in the current language. Facts that it lacks are shown as "?"."""
    texts = catalogue("watch", current()).get(alert.code, {})
    what, why, do = (filled(texts.get(part, ""), alert.facts) for part in ("what", "why", "do"))
    if alert.facts.get("failed"):  # told by an error, not by figures
        what = t("memory ran out in step {step}", step=alert.step)
    if alert.facts.get("held"):  # of the rule that else goes by the training loss
        what = t("on the held-out rows: {what}", what=what)
    if alert.level == "good":
        what = t("over: {what}", what=what)
    return NoticeWords(what, why, do)


def shown(alert: Alert) -> list[str]:
    """An alert as lines of plain text: sign, level, what and since when; below it what to try, where that is due."""
    text = words(alert)
    sign, level = SIGNS[alert.level], level_word(alert.level)
    head = t(
        "{sign} {level}, step {step}: {what} (since step {since}, {code})",
        sign=sign,
        level=level,
        step=alert.step,
        what=text.what,
        since=alert.since,
        code=alert.code,
    )
    return [head, f"   -> {text.do}"] if alert.level in {"watch", "bad"} and text.do else [head]
