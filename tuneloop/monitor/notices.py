"""Alerts and remedies as people see them: in the terminal, in the report and on its curve."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from tuneloop.base.language import t
from tuneloop.monitor import alerts, remedies
from tuneloop.monitor.alerts import LEVELS, Alert, NoticeWords, Tone, level_word
from tuneloop.monitor.remedies import Remedy


@dataclass(frozen=True, slots=True)
class Notice:
    """An alert or a remedy of events.jsonl, with the time of its line in seconds since 1970."""

    time: float
    source: Alert | Remedy

    @property
    def tone(self) -> Tone:
        return self.source.level if isinstance(self.source, Alert) else "remedy"

    @property
    def name(self) -> str:
        """The alert's rule, or the remedy's name."""
        return self.source.rule if isinstance(self.source, Alert) else self.source.remedy

    @property
    def step(self) -> int:
        return self.source.step

    @property
    def since(self) -> int:
        """The step from which on it holds."""
        return self.source.since if isinstance(self.source, Alert) else self.source.step

    def place(self) -> str:
        """Its step, and the first step of what was noticed where that is another."""
        if self.since >= self.step:
            return t("step {step}", step=f"{self.step:,}")
        return t("step {step} (since {since})", step=f"{self.step:,}", since=f"{self.since:,}")

    def words(self) -> NoticeWords:
        """Its words; its name alone where its line was written by another version that says other facts."""
        try:
            of = alerts.words(self.source) if isinstance(self.source, Alert) else remedies.words(self.source)
        except (KeyError, ValueError, TypeError, AttributeError):
            return NoticeWords(self.name, "", "")
        return replace(of, what=of.what or self.name)


def tone_word(tone: Tone) -> str:
    """The word of a level, or of a remedy.

    >>> tone_word("bad"), tone_word("remedy")
    ('bad', 'remedied')
    """
    return t("remedied") if tone == "remedy" else level_word(tone)


def notice_of(line: Mapping[str, Any]) -> Notice | None:
    """The notice that a line of events.jsonl holds; None for any other line, and for one that is not whole."""
    kinds: dict[Any, Callable[[Mapping[str, Any]], Alert | Remedy]] = {"alert": Alert.of, "remedy": Remedy.of}
    try:
        of = kinds.get(line.get("event"))
        return None if of is None else Notice(_moment(line.get("time")), of(line))
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


def _moment(raw: Any) -> float:
    """Seconds since 1970 that a calendar has; 0.0 for anything else."""
    try:
        datetime.fromtimestamp(raw)
    except (TypeError, ValueError, OverflowError, OSError):
        return 0.0
    return float(raw)


def notices(lines: Iterable[Mapping[str, Any]]) -> list[Notice]:
    """The notices in lines of events.jsonl, in their order. An alert that a resumed run gave again counts once, the
    last time; a remedy each time, since one step may need several."""
    once: dict[tuple[Tone, str, int], Notice] = {}
    for n, line in enumerate(lines):
        if (notice := notice_of(line)) is not None:
            key = (notice.tone, notice.name, n if isinstance(notice.source, Remedy) else notice.step)
            once.pop(key, None)
            once[key] = notice
    return list(once.values())


WORST_LAST: tuple[Tone, ...] = LEVELS


def still_on(seen: Iterable[Notice]) -> list[Notice]:
    """The alerts that are not over: of each rule the last one, the worst first. What came after the step that a remedy
    went back to has not been."""
    been: list[Notice] = []
    for notice in seen:
        if isinstance(notice.source, Remedy):
            back = notice.source.resume_at
            been = [n for n in been if n.step <= back]
        else:
            been.append(notice)
    last = {n.name: n for n in been}
    return sorted((n for n in last.values() if n.tone != "good"), key=lambda n: (-WORST_LAST.index(n.tone), -n.step))


def counted(seen: Iterable[Notice]) -> tuple[int, int, int]:
    """(alerts, bad ones among them, remedies): of a rule that worsened, each level it reached is one."""
    tones = [n.tone for n in seen]
    return sum(tone not in ("good", "remedy") for tone in tones), tones.count("bad"), tones.count("remedy")


def sum_up(lines: Iterable[Mapping[str, Any]]) -> str:
    """How many alerts and remedies the lines of events.jsonl hold, in words; "" where there are none."""
    alerts_raised, bad, mended = counted(notices(lines))
    if not alerts_raised and not mended:
        return ""
    return t("Alerts: {n} (bad: {bad}), remedies: {mended}.", n=alerts_raised, bad=bad, mended=mended)
