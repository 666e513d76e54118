"""The ledger: every row that was dropped or changed, with file, line and reason.

It does not know why a row went; each step says so itself. A reason is a short English phrase that can be counted;
`words()` has the phrases of all steps in the chosen language.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from tuneloop.base.errors import DataError
from tuneloop.base.language import t
from tuneloop.base.records import LedgerEntry

Action = Literal["dropped", "changed", "marked", "added"]
ACTIONS: tuple[Action, ...] = get_args(Action)


class Ledger:
    """Counts of what happened, and the entries themselves in a file: memory does not grow with the rows."""

    def __init__(self, path: Path | None = None) -> None:
        self._counts: dict[tuple[str, str], Counter[str]] = {}
        self._out = path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") if path else None

    def add(self, *entries: LedgerEntry) -> None:
        """Count entries and write each as a line of JSON; what is no UTF-8 stays readable as an escape."""
        for e in entries:
            self._counts.setdefault((e.step, e.reason), Counter())[e.action] += 1
            if self._out:
                self._out.write(json.dumps(e.as_dict(), ensure_ascii=False) + "\n")

    def total(self, action: Action) -> int:
        """Entries of one action; a row that was changed twice counts twice."""
        return sum(c[action] for c in self._counts.values())

    def counts(self) -> list[dict[str, Any]]:
        """One dict a step and reason, in order of first appearance: step, reason, dropped, changed, marked, added.

        >>> ledger = Ledger()
        >>> ledger.add(LedgerEntry("dropped", "dedupe", "repeated", "a.json", 2))
        >>> ledger.counts()
        [{'step': 'dedupe', 'reason': 'repeated', 'dropped': 1, 'changed': 0, 'marked': 0, 'added': 0}]
        """
        return [
            {"step": step, "reason": reason, **{action: count[action] for action in ACTIONS}}
            for (step, reason), count in self._counts.items()
        ]

    def balance(self, rows_in: int, rows_out: int) -> None:
        """Raise TL-DATA-BALANCE unless every row that went in came out or was dropped by name."""
        dropped, added = self.total("dropped"), self.total("added")
        if rows_in + added != rows_out + dropped:
            raise DataError("TL-DATA-BALANCE", rows_in=rows_in, rows_out=rows_out, dropped=dropped, added=added)

    def close(self) -> None:
        """The file is whole and on the disk."""
        if self._out:
            self._out.flush()
            os.fsync(self._out.fileno())
            self._out.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._out:
            self._out.close()


def entries(path: Path) -> Iterator[LedgerEntry]:
    """The entries of a ledger's file, one by one; raises TL-DATA-DAMAGED where it is not one."""
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                yield LedgerEntry(**json.loads(line))
    except (OSError, ValueError, TypeError) as error:
        raise DataError("TL-DATA-DAMAGED", where=str(path), error=str(error)) from error


def words() -> dict[str, str]:
    """Every reason that the data room gives -> the reason in the chosen language."""
    return {
        "broken JSON": t("the line is not JSON"),
        "broken CSV": t("the quotes of the row are broken"),
        "ragged row": t("the row has more or fewer cells than the header"),
        "error cell": t("a cell shows an error of the spreadsheet, such as #N/A"),
        "empty row": t("the row is empty"),
        "not an object": t("the row is not an object"),
        "other shape": t("the row does not have the columns that the others have"),
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
        "loss weight": t("an answer that is neither wholly learned nor wholly left out"),
        "turn keys not used": t("keys of turns that are not known and not used"),
        "value made text": t("a number, a truth value or a list made text"),
        "null left out": t("keys of tool calls that are null, left out"),
        "merged cell": t("a merged cell: its value belongs to every row of it"),
        "inline thought": t("a thought in the text of an answer, read as one"),
        "open thought": t("a thought without its end: no answer follows it"),
        "no text": t("the text is empty"),
        "no single label": t("the label is a list or an object"),
        "no verdict": t("neither yes nor no where a verdict was expected"),
        "equal answers": t("the better and the worse answer are equal"),
        "answers to different questions": t("the two dialogues part before the assistant answers"),
        "normalised": t("line ends, control characters or Unicode form normalised"),
        "empty end removed": t("empty turns at the end removed"),
        "empty turn": t("an empty turn"),
        "unfilled template": t("an unfilled {{name}} template"),
        "placeholder left": t("a {{name}} placeholder that will be trained as it stands"),
        "late system turn": t("a system turn in the middle"),
        "begins with the assistant": t("the dialogue does not begin with the user"),
        "tool turn without a call": t("a tool's result without a call"),
        "call without a result": t("a tool call without a result"),
        "result without an answer": t("a tool's result that the assistant does not take up"),
        "results put in order": t("results of tools put in the order of their calls"),
        "untrained answer left out": t("an answer that is not trained, beside one that is, left out"),
        "turns merged": t("neighbouring turns of the same role merged"),
        "unanswered end removed": t("turns without an answer at the end removed"),
        "no answer": t("nothing to learn: no answer"),
        "wrong encoding repaired": t("text that was read in a wrong encoding, repaired"),
        "markup removed": t("left-over HTML removed"),
        "empty answer": t("the better or the worse answer is empty"),
        "no label": t("the label is empty"),
        "no difference": t("the better and the worse answer are equal"),
        "same role twice": t("neighbouring turns of the same role"),
        "untrained end removed": t("turns after the last trained answer removed"),
        "too few turns": t("fewer turns than prepare.turns asks for"),
        "too many turns": t("more turns than prepare.turns allows"),
        "other language": t("in a language that clean.languages does not name"),
        "personal data": t("personal data"),
        "personal data masked": t("personal data masked"),
        "lexicon word": t("a word of the safety lexicon"),
        "repeats itself": t("an answer that repeats itself"),
        "refusal": t("an answer that refuses"),
        "lost characters": t("characters that were lost and cannot be restored"),
        "wrong encoding": t("text that was read in a wrong encoding and cannot be restored"),
        "keyboard noise": t("keyboard noise"),
        "repeated": t("the same dialogue occurred before"),
        "nearly repeated": t("nearly the same dialogue occurred before"),
        "conflicting label": t("the same text occurred before with another label, or with its answers exchanged"),
        "also in training": t("nearly the same dialogue is in the training data"),
        "question also in training": t("the same question is in the training data"),
        "held by many rows": t(
            "many different rows contain it whole, as they do a greeting: trained on, never held out"
        ),
        "system prompt added": t("the recipe's system prompt added"),
        "too long": t("longer than max_length"),
        "too large": t("of so many characters that no length limit lets it in"),
        "outside the token range": t("fewer or more tokens than prepare.tokens asks for"),
        "split by turns": t("longer than max_length, split between turns"),
        "oldest turns left out": t("longer than max_length, its oldest turns left out"),
        "split by tokens": t("longer than max_length, split into windows"),
        "cut on the left": t("longer than max_length, cut at the beginning"),
        "cut on the right": t("longer than max_length, cut at the end"),
        "held out elsewhere": t("nearly the same row is in a file given as test or validation"),
        "holds a held-out row": t("it contains a dialogue of a file given as test or validation"),
        "synonyms": t("derived from a training row: words replaced by others of the same meaning"),
        "back_translation": t("derived from a training row: translated and back"),
        "follow_up": t("derived from a training row: one more question and its answer"),
        "branch": t("derived from a training row: another last question and its answer"),
        "nearly a held-out row": t("a derived row that nearly repeats a held-out row"),
        "call not written": t("a tool call that the chat template cannot write: the turn is not trained"),
        "thought not written": t("a thought that the chat template cannot write: the turn is not trained"),
        "thought without an answer": t("a thought without an answer: the turn is not trained"),
        "answer without words": t("an answer without words: the turn is not trained"),
        "control token spelled": t("the text of a control token, read as text: it ends or begins nothing"),
        "template refuses": t("the model's chat template refuses the dialogue"),
    }


def steps() -> dict[str, str]:
    """Every step that writes into the ledger -> its name in the chosen language."""
    return {
        "read": t("reading"),
        "normalise": t("normalising"),
        "empty_turns": t("empty turns"),
        "templates": t("unfilled templates"),
        "merge_turns": t("merging turns"),
        "results": t("results of tools"),
        "order": t("order of the turns"),
        "unanswered": t("turns without an answer"),
        "mojibake": t("wrong encodings"),
        "markup": t("left-over HTML"),
        "reject_turns": t("repeated roles"),
        "difference": t("equal answers"),
        "turns": t("number of turns"),
        "languages": t("languages"),
        "pii": t("personal data"),
        "lexicon": t("safety lexicon"),
        "repetition": t("repetition inside an answer"),
        "refusal": t("refusals"),
        "gibberish": t("text without sense"),
        "dedupe": t("repetitions"),
        "system": t("system prompt"),
        "split": t("split"),
        "length": t("length"),
        "template": t("chat template"),
        "control_tokens": t("control tokens in texts"),
        "augment": t("derived rows"),
    }
