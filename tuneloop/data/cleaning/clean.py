"""The cleaning pipeline: steps in order. Each returns the record, changed or not, or drops it, with a ledger entry.

No step knows a file format or a tokenizer. `steps` makes those that the recipe wants, in order: text repair first, then
the turns, then filters by content. No entry quotes a text: it may hold personal data.
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
from tuneloop.data.kinds import KINDS
from tuneloop.recipe.schema import CleanPart
from tuneloop.safety import pii

if TYPE_CHECKING:
    from tuneloop.safety.guard import TextGuard


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
        from tuneloop.safety.guard import TextGuard

        guard = TextGuard.load(lists=part.lexicon_files)
        out.append(partial(words, drop=part.lexicon == "drop", guard=guard))
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
        cleaned, ledger_entry = step(record)
        if ledger_entry:
            entries.append(ledger_entry)
        if cleaned is None:
            return None, entries
        record = cleaned
    return record, entries


# --- repairs ---

_normalised = each_text(repair.normalised)
_repaired = each_text(repair.mojibake)
_unmarked = each_text(repair.without_markup)


def normalise(record: Record) -> Result:
    """Changed where `repair.normalised` changes a text or a thought; tool calls stay as they are."""
    new = mapped(record, _normalised)
    return (record, None) if new is record else changed(record, new, "normalise", "normalised")


def mojibake(record: Record) -> Result:
    """Changed where mojibake (a text decoded in a wrong encoding) can be repaired.

    Texts that speak of wrong encodings stay as they are, with all that is wrong in them.
    """
    new = mapped(record, _repaired)
    if new is record:
        return record, None
    prompt_end = len(record.prompt) if record.rejected else 0
    for old, repaired in (
        (record.messages, new.messages),
        (record.messages[:prompt_end] + record.rejected, new.messages[:prompt_end] + new.rejected),
    ):
        if misread.is_subject([m.content for m in old], [m.content for m in repaired]):
            return record, None
    return changed(record, new, "mojibake", "wrong encoding repaired")


def markup(record: Record) -> Result:
    """Changed where left-over HTML is removed. Tool results and system prompts stay as they are: there it is meant."""
    texts = [text for m in all_messages(record) for text in (m.content, m.reasoning)]
    if not any("<" in text or "&" in text for text in texts) or not any(map(repair.has_markup, texts)):
        return record, None
    dialogue = KINDS[record.kind].dialogue
    if repair.talks_of_markup(texts, dialogue) or (dialogue and meant.markup(list(all_messages(record)))):
        return record, None
    if any(misread.is_bytes(text) for text in texts if not text.isascii()):  # an entity read now would be one byte more
        return record, None
    new = mapped(record, lambda m: m if m.role in ("tool", "system") else _unmarked(m))
    return (record, None) if new is record else changed(record, new, "markup", "markup removed")


def templates(record: Record) -> Result:
    """Dropped for an unfilled placeholder {{name}} that is all of a turn or the assistant's identity.

    Marked for any other one. Code in backticks, LaTeX, JSX braces and texts that speak of templates are left alone.
    """
    left = ""
    for message in all_messages(record):
        if "{{" not in message.content or message.role == "tool":
            continue
        if placeholder := meant.unfilled(message.content):
            if meant.talks_of_templates(m.content for m in all_messages(record)):
                return record, None
            if meant.must_be_filled(placeholder, message.content):
                return dropped(record, "templates", "unfilled template", placeholder)
            left = left or placeholder
    return marked(record, "templates", "placeholder left", left) if left else (record, None)


# --- languages ---


def _codes(names: Sequence[str]) -> frozenset[str]:
    """Language codes of a recipe as known codes: zh-CN, ZH -> zh."""
    codes = {name: re.split("[-_]", name.strip().lower())[0] for name in names}
    for name, code in codes.items():
        if code not in KNOWN:
            raise DataError(
                "TL-DATA-LANGUAGE", where="prepare.clean.languages", language=name, known=listed(sorted(KNOWN))
            )
    return frozenset("no" if code == "nb" else code for code in codes.values())


def languages(record: Record, wanted: frozenset[str]) -> Result:
    """Dropped where the record is in a language that is not wanted; kept where there is too little to tell."""
    texts = [m.content for m in all_messages(record) if m.role in ("user", "assistant")]
    share = max(LENGTH // max(len(texts), 1), 40)
    code = language("\n".join(text[:share] for text in texts))
    if not code or code in wanted:
        return record, None
    return dropped(record, "languages", "other language", code)


# --- personal data and words ---


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{kind}: {count}" for kind, count in sorted(counts.items()))


class _Masker:
    """Masks personal data and counts it by kind (`counts`). JSON data keeps its keys and stays JSON."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self._kinds = kinds
        self.counts = Counter[str]()

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
        self.counts.update(span.kind for span in spans)
        return pii.mask(text, spans)

    def _tree(self, content: Any, before: str = "") -> Any:
        """JSON data with its texts masked: a JSON text stays one; an integer becomes a text where it is masked."""
        if isinstance(content, str):
            return self._embedded(content) if content[:1] in ("{", "[") else self.text(content, before)
        if isinstance(content, dict):
            return {key: self._tree(inner, f"{key}: ") for key, inner in content.items()}
        if isinstance(content, list | tuple):
            return type(content)(self._tree(inner, before) for inner in content)
        if isinstance(content, int) and abs(content) >= 10**6:
            masked = self.text(str(content), before)
            return content if masked == str(content) else masked
        return content

    def _embedded(self, text: str) -> str:
        try:
            decoded = json.loads(text)
        except (ValueError, RecursionError):
            return self.text(text)
        safe = self._tree(decoded)
        return text if safe == decoded else json.dumps(safe, ensure_ascii=False)

    def message(self, message: Message) -> Message:
        """The masked message, or the very same one where there is nothing to mask."""
        content = self._tree(message.content) if message.role == "tool" else self.text(message.content)
        reasoning = self.text(message.reasoning) if message.reasoning else ""
        calls = self._tree(message.tool_calls) if message.tool_calls else ()
        if content == message.content and reasoning == message.reasoning and calls == message.tool_calls:
            return message
        return replace(message, content=content, reasoning=reasoning, tool_calls=calls)


def personal(record: Record, action: str, kinds: tuple[str, ...]) -> Result:
    """Marked, masked (changed) or dropped for personal data. The detail has kinds and counts, never the data."""
    masker = _Masker(kinds)
    masked = mapped(record, masker.message)
    if not masker.counts:
        return record, None
    detail = _counted(masker.counts)
    if action == "mask":
        return changed(record, masked, "pii", "personal data masked", detail)
    return judged(record, action == "drop", "pii", "personal data", detail)


def words(record: Record, drop: bool, guard: TextGuard) -> Result:
    """Marked or dropped where the guard finds a listed word, however it is hidden; the detail has kinds and counts."""
    texts = (text for m in all_messages(record) for text in (m.content, m.reasoning) if text)
    counts = Counter(span.kind for text in texts for span in guard.words(text))
    return judged(record, drop, "lexicon", "lexicon word", _counted(counts)) if counts else (record, None)


# --- quality ---


def _learnt(record: Record) -> Iterator[str]:
    """What the record teaches to say: its answers or its text. An answer that is known to be bad is none of it."""
    kind = KINDS[record.kind]
    if kind.label == "verdict" and record.label == "bad":
        return
    for message in record.messages:
        if not kind.dialogue or (message.role == "assistant" and message.trained):
            yield message.content


REPEATS = 0.6
"""Share of repeated n-grams from which an answer counts as repetitive."""


def repetition(record: Record, drop: bool) -> Result:
    """Marked or dropped where most of an answer repeats itself."""
    share = max(map(quality.repetition, _learnt(record)), default=0.0)
    if share < REPEATS:
        return record, None
    return judged(record, drop, "repetition", "repeats itself", f"{share:.0%}")


def refusal(record: Record, drop: bool) -> Result:
    """Marked or dropped where an answer begins with a refusal."""
    if not KINDS[record.kind].dialogue:
        return record, None
    count = sum(map(quality.refuses, _learnt(record)))
    return judged(record, drop, "refusal", "refusal", str(count)) if count else (record, None)


def gibberish(record: Record, drop: bool) -> Result:
    """Marked or dropped where a text has lost characters, or an answer is keyboard noise."""
    for message in all_messages(record):
        if fault := quality.lost(message.content):
            return judged(record, drop, "gibberish", fault)
    if any(map(quality.noise, _learnt(record))):
        return judged(record, drop, "gibberish", "keyboard noise")
    return record, None
