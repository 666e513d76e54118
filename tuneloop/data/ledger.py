"""The ledger: every row that was dropped or changed, with file, line and reason.

It does not know why a row went; each step says so itself. A reason is a short English phrase that can be counted;
`words()` has the phrases of all steps in the chosen language.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tuneloop.errors import DataError
from tuneloop.language import t
from tuneloop.records import LedgerEntry


class Ledger:
    """Entries in the order they were made."""

    def __init__(self, entries: Iterable[LedgerEntry] = ()) -> None:
        self.entries: list[LedgerEntry] = list(entries)

    def add(self, *entries: LedgerEntry) -> None:
        self.entries.extend(entries)

    @property
    def dropped(self) -> int:
        """Rows that are gone."""
        return sum(e.action == "dropped" for e in self.entries)

    @property
    def changed(self) -> int:
        """Entries about rows that were changed; a row changed twice counts twice."""
        return sum(e.action == "changed" for e in self.entries)

    def counts(self) -> list[dict[str, Any]]:
        """One dict a step and reason, in order of first appearance: step, reason, dropped, changed.

        >>> Ledger([LedgerEntry("dropped", "dedupe", "repeated", "a.json", 2)]).counts()
        [{'step': 'dedupe', 'reason': 'repeated', 'dropped': 1, 'changed': 0}]
        """
        table: dict[tuple[str, str], dict[str, Any]] = {}
        for e in self.entries:
            zero = {"step": e.step, "reason": e.reason, "dropped": 0, "changed": 0}
            table.setdefault((e.step, e.reason), zero)[e.action] += 1
        return list(table.values())

    def balance(self, rows_in: int, rows_out: int) -> None:
        """Raise TL-DATA-BALANCE unless every row that went in came out or was dropped by name."""
        if rows_in != rows_out + self.dropped:
            raise DataError("TL-DATA-BALANCE", rows_in=rows_in, rows_out=rows_out, dropped=self.dropped)

    def write(self, path: Path) -> None:
        """One JSON object a line. What cannot be written as UTF-8 stays readable as an escape."""
        with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as out:
            for e in self.entries:
                out.write(json.dumps(e.as_dict(), ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """The ledger that `write` wrote; raises TL-DATA-DAMAGED where the file is not one."""
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
            return cls(LedgerEntry(**json.loads(line)) for line in lines if line)
        except (OSError, ValueError, TypeError) as error:
            raise DataError("TL-DATA-DAMAGED", where=str(path), error=str(error)) from error


def words() -> dict[str, str]:
    """Every reason that the data room gives -> the reason in the chosen language."""
    return {
        "broken JSON": t("the line is not JSON"),
        "broken CSV": t("the quotes of the row are broken"),
        "ragged row": t("the row has more or fewer cells than the header"),
        "empty row": t("the row is empty"),
        "not an object": t("the row is not an object"),
        "other shape": t("the row does not have the columns of a dialogue"),
        "invalid Unicode": t("the text is not valid Unicode"),
        "NaN or infinity": t("NaN or infinity where text was expected"),
        "not JSON data": t("a value that JSON cannot hold"),
        "missing value": t("a needed value is missing"),
        "not text": t("a value is not text"),
        "no turns": t("the dialogue has no turns"),
        "unknown turn": t("a turn of unknown form"),
        "unknown role": t("a turn of unknown role"),
        "part not text": t("a content part that is not text, such as an image"),
        "broken tool call": t("a tool call that cannot be read"),
        "broken tools": t("the list of tools cannot be read"),
        "loss weight": t("an answer with a loss weight of its own, which is not supported yet"),
        "normalised": t("line ends, control characters or Unicode form normalised"),
        "empty end removed": t("empty turns at the end removed"),
        "empty turn": t("an empty turn"),
        "unfilled template": t("an unfilled {{name}} template"),
        "late system turn": t("a system turn in the middle"),
        "begins with the assistant": t("the dialogue does not begin with the user"),
        "tool turn without a call": t("a tool's result without a call"),
        "call without a result": t("a tool call without a result"),
        "result without an answer": t("a tool's result that the assistant does not take up"),
        "turns merged": t("neighbouring turns of the same role merged"),
        "unanswered end removed": t("turns without an answer at the end removed"),
        "no answer": t("nothing to learn: no answer"),
        "repeated": t("the same dialogue occurred before"),
        "system prompt added": t("the recipe's system prompt added"),
        "too long": t("longer than max_length"),
        "template refuses": t("the model's chat template refuses the dialogue"),
    }
