"""Cleaning: small steps, one after the other. Each gives the record back, changed or not, or drops it, and says so.

No step knows a file format or a tokenizer. `steps` makes those that the recipe wants, in order: what repairs text comes
first, then the turns, then what looks at the meaning. No entry quotes a text: it may hold personal data.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from tuneloop.base.errors import DataError
from tuneloop.base.language import listed
from tuneloop.base.records import LedgerEntry, Message, Record
from tuneloop.data.cleaning import meant, misread, quality, repair
from tuneloop.data.cleaning.dialogue import (
    difference,
    empty_turns,
    merge_turns,
    order,
    reject_turns,
    results,
    turn_limit,
    unanswered,
)
from tuneloop.data.cleaning.languages import KNOWN, LENGTH, language
from tuneloop.data.cleaning.step import Result, Step, all_messages, changed, dropped, each_text, judged, mapped, marked
from tuneloop.recipe.schema import CleanPart
from tuneloop.safety import pii

if TYPE_CHECKING:
    from tuneloop.safety.lexicon import Lexicon


def steps(part: CleanPart, turns: tuple[int, int] | None = None) -> tuple[Step, ...]:
    """The cleaning steps that a recipe wants. `turns` limits the user turns of a dialogue.

    Raises TL-DATA-LANGUAGE for a language that is not known, and DataError for a word list that cannot be read.
    """
    wanted: list[tuple[Any, Step]] = [
        (part.html, markup),
        (part.mojibake, mojibake),
        (part.unicode, normalise),
        (True, empty_turns),
        (part.templates, templates),
        (True, merge_turns if part.roles == "merge" else reject_turns),
        (True, results),
        (True, order),
        (True, unanswered),
        (True, difference),
    ]
    out = [step for on, step in wanted if on]
    if turns:
        out.append(partial(turn_limit, least=turns[0], most=turns[1]))
    if part.languages:
        out.append(partial(languages, wanted=_codes(part.languages)))
    if part.pii != "off":
        out.append(partial(personal, action=part.pii, kinds=tuple(part.pii_kinds)))
    if part.lexicon != "off":
        from tuneloop.safety.lexicon import Lexicon

        out.append(partial(words, drop=part.lexicon == "drop", lexicon=Lexicon.load(part.lexicon_files)))
    for action, step in ((part.repetition, repetition), (part.refusal, refusal), (part.gibberish, gibberish)):
        if action != "off":
            out.append(partial(step, drop=action == "drop"))
    return tuple(out)


@cache
def _default() -> tuple[Step, ...]:
    return steps(CleanPart())


def clean(record: Record, steps: Sequence[Step] | None = None) -> tuple[Record | None, list[LedgerEntry]]:
    """The record after all steps (by default those of an empty recipe), or None; and what happened to it on the way."""
    entries: list[LedgerEntry] = []
    for step in _default() if steps is None else steps:
        cleaned, entry = step(record)
        if entry:
            entries.append(entry)
        if cleaned is None:
            return None, entries
        record = cleaned
    return record, entries


# --- repairs ---

_normalised = each_text(repair.plain)
_repaired = each_text(repair.mojibake)
_unmarked = each_text(repair.without_markup)


def normalise(record: Record) -> Result:
    """Changed where `repair.plain` changes a text or a thought; tool calls stay as they are."""
    new = mapped(record, _normalised)
    return (record, None) if new is record else changed(record, new, "normalise", "normalised")


def mojibake(record: Record) -> Result:
    """Changed where a text was read in a wrong encoding and what was meant can still be told.

    Texts that speak of wrong encodings stay as they are, with all that is wrong in them.
    """
    new = mapped(record, _repaired)
    if new is record:
        return record, None
    asked = len(record.prompt) if record.rejected else 0
    for old, repaired in ((record.messages, new.messages), (record.messages[:asked] + record.rejected,
                                                            new.messages[:asked] + new.rejected)):  # fmt: skip
        if misread.is_subject([m.content for m in old], [m.content for m in repaired]):
            return record, None
    return changed(record, new, "mojibake", "wrong encoding repaired")


def markup(record: Record) -> Result:
    """Changed where markup is left over. Results of tools and system prompts stay as they are: there it is meant."""
    texts = [text for m in all_messages(record) for text in (m.content, m.reasoning)]
    if not any("<" in text or "&" in text for text in texts) or not any(map(repair.has_markup, texts)):
        return record, None
    dialogue = record.kind not in ("text", "label")
    if repair.talks_of_markup(texts, dialogue) or (dialogue and meant.markup(list(all_messages(record)))):
        return record, None
    if any(misread.is_bytes(text) for text in texts if not text.isascii()):  # an entity read now would be one byte more
        return record, None
    new = mapped(record, lambda m: m if m.role in ("tool", "system") else _unmarked(m))
    return (record, None) if new is record else changed(record, new, "markup", "markup removed")


def templates(record: Record) -> Result:
    """A {{name}} that nobody filled in drops the dialogue where it is all of a turn or says who the assistant is.

    Another one only marks it. Code in backticks, LaTeX, JSX braces and texts that speak of templates are left alone.
    """
    left = ""
    for message in all_messages(record):
        if "{{" not in message.content or message.role == "tool":
            continue
        if found := meant.unfilled(message.content):
            if meant.talks_of_templates(m.content for m in all_messages(record)):
                return record, None
            if meant.must_be_filled(found, message.content):
                return dropped(record, "templates", "unfilled template", found)
            left = left or found
    return marked(record, "templates", "placeholder left", left) if left else (record, None)


# --- languages ---


def _codes(names: Sequence[str]) -> frozenset[str]:
    """zh-CN, ZH -> zh."""
    codes = {name: re.split("[-_]", name.strip().lower())[0] for name in names}
    for name, code in codes.items():
        if code not in KNOWN:
            raise DataError("TL-DATA-LANGUAGE", where="prepare.clean.languages", language=name,
                            known=listed(sorted(KNOWN)))  # fmt: skip
    return frozenset("no" if code == "nb" else code for code in codes.values())


def languages(record: Record, wanted: frozenset[str]) -> Result:
    """Dropped where the record is in a language that is not wanted; kept where there is too little to tell."""
    said = [m.content for m in all_messages(record) if m.role in ("user", "assistant")]
    share = max(LENGTH // max(len(said), 1), 40)
    found = language("\n".join(text[:share] for text in said))
    if not found or found in wanted:
        return record, None
    return dropped(record, "languages", "other language", found)


# --- personal data and words ---


def _counted(found: Counter[str]) -> str:
    return ", ".join(f"{kind}: {count}" for kind, count in sorted(found.items()))


class _Masker:
    """Masks personal data and counts what it found, by kind. JSON data stays JSON data of the same keys."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self._kinds = kinds
        self.found = Counter[str]()

    def text(self, text: str, before: str = "") -> str:
        """`before` is what stands in front of the text, such as its key: it may say what a number is."""
        at = len(before)
        spans = [
            replace(s, start=s.start - at, end=s.end - at)
            for s in pii.find(before + text, self._kinds)
            if s.start >= at
        ]
        if not spans:
            return text
        self.found.update(span.kind for span in spans)
        return pii.mask(text, spans)

    def data(self, value: Any, before: str = "") -> Any:
        """A text that is JSON itself stays so; a whole number becomes a text where it must."""
        if isinstance(value, str):
            return self._embedded(value) if value[:1] in ("{", "[") else self.text(value, before)
        if isinstance(value, dict):
            return {key: self.data(inner, f"{key}: ") for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.data(inner, before) for inner in value)
        if isinstance(value, int) and abs(value) >= 10**6:
            masked = self.text(str(value), before)
            return value if masked == str(value) else masked
        return value

    def _embedded(self, text: str) -> str:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return self.text(text)
        safe = self.data(value)
        return text if safe == value else json.dumps(safe, ensure_ascii=False)

    def message(self, message: Message) -> Message:
        """The very same message where there is nothing to mask."""
        content = self.data(message.content) if message.role == "tool" else self.text(message.content)
        reasoning = self.text(message.reasoning) if message.reasoning else ""
        calls = self.data(message.tool_calls) if message.tool_calls else ()
        if content == message.content and reasoning == message.reasoning and calls == message.tool_calls:
            return message
        return replace(message, content=content, reasoning=reasoning, tool_calls=calls)


def personal(record: Record, action: str, kinds: tuple[str, ...]) -> Result:
    """Personal data: marked, masked (changed) or dropped. The detail has kinds and counts, never the data."""
    masker = _Masker(kinds)
    masked = mapped(record, masker.message)
    if not masker.found:
        return record, None
    detail = _counted(masker.found)
    if action == "mask":
        return changed(record, masked, "pii", "personal data masked", detail)
    return judged(record, action == "drop", "pii", "personal data", detail)


def words(record: Record, drop: bool, lexicon: Lexicon) -> Result:
    """Marked or dropped where a word of the lexicon stands in a text; the detail has the kinds and how often."""
    texts = (text for m in all_messages(record) for text in (m.content, m.reasoning) if text)
    found = Counter(span.kind for text in texts for span in lexicon.find(text))
    return judged(record, drop, "lexicon", "lexicon word", _counted(found)) if found else (record, None)


# --- quality ---


def _learnt(record: Record) -> Iterator[str]:
    """What the record teaches to say: its answers or its text. An answer that is known to be bad is none of it."""
    if record.kind == "judged" and record.label == "bad":
        return
    for message in record.messages:
        if record.kind in ("text", "label") or (message.role == "assistant" and message.trained):
            yield message.content


REPEATS = 0.6
"""Share of an answer from which it repeats itself."""


def repetition(record: Record, drop: bool) -> Result:
    """Marked or dropped where most of an answer repeats itself."""
    share = max(map(quality.repetition, _learnt(record)), default=0.0)
    if share < REPEATS:
        return record, None
    return judged(record, drop, "repetition", "repeats itself", f"{share:.0%}")


def refusal(record: Record, drop: bool) -> Result:
    """Marked or dropped where an answer begins with a refusal."""
    if record.kind in ("text", "label"):
        return record, None
    count = sum(map(quality.refuses, _learnt(record)))
    return judged(record, drop, "refusal", "refusal", str(count)) if count else (record, None)


def gibberish(record: Record, drop: bool) -> Result:
    """Marked or dropped where characters of any text are lost, or an answer is keyboard noise."""
    for message in all_messages(record):
        if fault := quality.lost(message.content):
            return judged(record, drop, "gibberish", fault)
    if any(map(quality.noise, _learnt(record))):
        return judged(record, drop, "gibberish", "keyboard noise")
    return record, None
