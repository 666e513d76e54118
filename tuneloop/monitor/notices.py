"""Alerts and remedies as people see them: in the terminal, in the report and on its curve."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from tuneloop.base.language import t

Tone = Literal["good", "note", "watch", "bad", "remedy"]
TONES: tuple[Tone, ...] = ("good", "note", "watch", "bad")
"""Levels of an alert, the worst last."""
SIGNS: dict[Tone, str] = {"good": "✓", "note": "i", "watch": "!", "bad": "✗", "remedy": "↻"}


@dataclass(frozen=True, slots=True)
class NoticeWords:
    """What was noticed or done, why it matters, and what to do, in the language of now."""

    what: str
    why: str
    do: str


@dataclass(frozen=True, slots=True)
class Notice:
    """An alert or a remedy of events.jsonl. `name`: of the alert's rule or of the remedy; `since`: its first step."""

    tone: Tone
    name: str
    step: int
    since: int
    time: float
    line: dict[str, Any]

    def words(self) -> NoticeWords:
        facts = ", ".join(f"{k} {v}" for k, v in (self.line.get("facts") or {}).items())
        return NoticeWords(f"{self.name}: {facts}", "Because of it the loss may not fall.", "Lower the learning rate.")


def words_of_tones() -> dict[Tone, str]:
    """Tone -> its word."""
    return {
        "good": t("over"),
        "note": t("note"),
        "watch": t("watch"),
        "bad": t("bad"),
        "remedy": t("remedied"),
    }


def notice_of(line: dict[str, Any]) -> Notice | None:
    """The notice that a line of events.jsonl holds; None for any other line, and for one that is not whole."""
    kind, step, time = line.get("event"), line.get("step"), line.get("time")
    if kind not in ("alert", "remedy") or not isinstance(step, int):
        return None
    moment = float(time) if isinstance(time, int | float) else 0.0
    if kind == "remedy":
        return Notice("remedy", str(line.get("remedy", "")), step, step, moment, line)
    tone = next((one for one in TONES if one == line.get("level")), None)
    since = line.get("since")
    if tone is None:
        return None
    return Notice(tone, str(line.get("rule", "")), step, since if isinstance(since, int) else step, moment, line)


def notices(lines: Iterable[dict[str, Any]]) -> list[Notice]:
    """The notices in lines of events.jsonl, in their order; one that a resumed run found again counts once."""
    once = {(n.tone, n.name, n.step): n for line in lines if (n := notice_of(line)) is not None}
    return list(once.values())


def still_on(seen: Iterable[Notice]) -> list[Notice]:
    """The alerts that are not over: of each rule the last one, the worst first."""
    last = {n.name: n for n in seen if n.tone != "remedy"}
    return sorted((n for n in last.values() if n.tone != "good"), key=lambda n: (-TONES.index(n.tone), -n.step))


def counted(seen: Iterable[Notice]) -> tuple[int, int, int]:
    """(alerts, bad ones among them, remedies): of a rule that worsened, each level it reached is one."""
    tones = [n.tone for n in seen]
    return sum(tone not in ("good", "remedy") for tone in tones), tones.count("bad"), tones.count("remedy")
