"""The report of a proof: proof.jsonl, a line as soon as it stands, and proof.md, the page made of those lines.

Whoever stops the proof at any moment finds both, as far as it came.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneloop.base.files import write_atomic
from tuneloop.base.language import t
from tuneloop.selftest.lines import VERDICTS, Line


def _cell(text: str) -> str:
    """
    >>> _cell("a|b\\nc")
    'a\\\\|b c'
    """
    return " ".join(text.replace("|", "\\|").split())


def counts(lines: Iterable[Line]) -> dict[str, int]:
    """How many lines have each verdict."""
    verdicts = [line.verdict for line in lines]
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS}


def closing(lines: Sequence[Line], seconds: float, *, on_card: bool) -> str:
    """The sentence that counts the lines."""
    of = counts(lines)
    summary = t(
        "{passed} passed, {failed} failed, {refused} refused with a code, {absent} not run, in {n:.0f} s",
        passed=of["passed"],
        failed=of["failed"],
        refused=of["refused"],
        absent=of["not run"],
        n=seconds,
    )
    return summary if on_card else summary + t(". No CUDA device: these lines ran on the CPU")


def page(first: str, facts: Iterable[Sequence[str]], lines: Iterable[Line]) -> str:
    """The report as Markdown that can be posted as it is."""
    about = [f"| {_cell(name)} | {_cell(content)} |" for name, content in facts]
    table = [
        f"| {_cell(verdict)} | {_cell(what)} | {_cell(detail)} |"
        for verdict, what, detail in (line.row() for line in lines)
    ]
    return "\n".join(
        [
            f"# {t('tuneloop: proof on this machine')}",
            "",
            f"{first}{t('.')}",
            "",
            f"| {t('fact')} | {t('value')} |",
            "|---|---|",
            *about,
            "",
            f"| {t('result')} | {t('claim')} | {t('measured')} |",
            "|---|---|---|",
            *table,
            "",
        ]
    )


@dataclass(frozen=True, slots=True)
class Report:
    """A folder's proof.jsonl and proof.md. Several processes write it, one after the other."""

    folder: Path

    @property
    def journal(self) -> Path:
        return self.folder / "proof.jsonl"

    @property
    def page(self) -> Path:
        return self.folder / "proof.md"

    def begin(self) -> None:
        """An empty report, over one that was there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal.write_text("", encoding="utf-8")

    def facts(self, pairs: Iterable[tuple[str, str]], *, on_card: bool) -> None:
        self._append({"facts": [list(pair) for pair in pairs], "on_card": on_card})

    def line(self, section: str, line: Line, seconds: float) -> None:
        """A claim, `seconds` after the proof began."""
        self._append({"section": section, "seconds": round(seconds, 1), **asdict(line)})

    def end(self, seconds: float) -> None:
        self._append({"end": True, "seconds": round(seconds, 1)})

    def _append(self, line: dict[str, Any]) -> None:
        with self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        write_atomic(self.page, self._page())

    def entries(self) -> list[dict[str, Any]]:
        """What the journal holds; the last line may be half written."""
        lines = []
        for line in self.journal.read_text(encoding="utf-8").split("\n"):
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
        return lines

    def lines(self) -> list[Line]:
        return [Line(e["group"], e["what"], e["verdict"], e["detail"]) for e in self.entries() if "verdict" in e]

    def _page(self) -> str:
        entries, lines = self.entries(), self.lines()
        about: dict[str, Any] = next((e for e in entries if "facts" in e), {"facts": [], "on_card": False})
        first = closing(lines, max((e.get("seconds", 0.0) for e in entries), default=0.0), on_card=about["on_card"])
        if not any("end" in e for e in entries):
            first += t(". It was stopped before its end")
        return page(first, about["facts"], lines)
