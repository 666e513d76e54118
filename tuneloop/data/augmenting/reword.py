"""A user's turn in other words: synonyms in one sentence, or to another language and back; and how likely it is."""

from __future__ import annotations

import math
import random
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tuneloop.base.records import Record
from tuneloop.data.augmenting.helpers import Batch, Helpers
from tuneloop.data.augmenting.substitute import KEPT, Changed, Table, substituted
from tuneloop.data.cleaning.languages import language
from tuneloop.data.dedupe.exact import squeezed
from tuneloop.recipe.schema import AugmentPart

LANGUAGE_TEXTS, LANGUAGE_LENGTH = 4, 60
"""Texts, and first characters of each, by which it is told whether a model knows a language. Turns, not sentences: of a
short sentence the first tokens, which nothing foretells, are too large a share."""
NATIVE, FOREIGN = 1.2, 1.4
"""Nats a byte: one turn up to the first shows that a model knows a language; else the median of the turns must be up to
the second. Of 97 Chinese turns (EmoLLM, gaokao_zh) SmolLM2 needs 1.5 to 2.6, of four the median is 1.6 to 2.2; Gemma 3
270M needs 0.7 to 1.9 of one, and 0.8 to 1.3 of four. In English (Alpaca) both need 0.7 to 1.2 of four."""


@dataclass(frozen=True)
class Turn:
    """A user's turn that may change: which of the record's, its text, and the language of the dialogue."""

    record: Record
    at: int
    text: str
    tongue: str

    def said(self, text: str) -> Record:
        """The record with another text in this place."""
        messages = list(self.record.messages)
        messages[self.at] = replace(messages[self.at], content=text)
        return replace(self.record, messages=tuple(messages), parent=self.record.id)


def turns(record: Record, rng: random.Random, out: Batch) -> list[Turn]:
    """One user's turn of a row that has one. With tools none may change: a call repeats what was asked, in words."""
    places = [n for n, m in enumerate(record.messages) if m.role == "user" and m.content.strip()]
    if tooled(record):
        out.rejected["has tools"] += 1
    elif not places:
        out.rejected["no user turn"] += 1
    else:
        at = rng.choice(places)
        return [Turn(record, at, record.messages[at].content, tongue(record))]
    return []


def tooled(record: Record) -> bool:
    return bool(record.tools) or any(m.tool_calls or m.role == "tool" for m in record.messages)


def tongue(record: Record) -> str:
    """The language of a dialogue's user, as `language` names it."""
    said = "\n".join(m.content[:300] for m in record.messages if m.role == "user")
    return language(said) or language("\n".join(m.content[:300] for m in record.messages))


def changed(record: Record, rng: random.Random, table: Table, out: Batch) -> list[tuple[Turn, Changed]]:
    """A turn of the row with other words, where that can be."""
    found = []
    for turn in turns(record, rng, out):
        new = substituted(turn.text, table, rng)
        if new is None:
            out.rejected["no word to replace"] += 1
        else:
            found.append((turn, new))
    return found


def likely(
    found: list[tuple[Turn, Changed]], languages: Languages, part: AugmentPart, helpers: Helpers, out: Batch
) -> Iterator[Record]:
    """The rows whose changed sentence the model finds about as likely as the old one."""
    assert helpers.shift is not None
    known = languages.known([(turn.tongue, turn.text) for turn, _ in found])
    judged = [(turn, new) for turn, new in found if turn.tongue in known]
    out.rejected["language unknown to the model"] += len(found) - len(judged)
    limit = math.log(part.nonsense)
    shifts = helpers.shift([(new.before, new.after) for _, new in judged], limit)
    for (turn, new), (shift, tokens) in zip(judged, shifts, strict=True):
        # Counted in the tokens of the old sentence: a nonsense word of many likely pieces must not pass for their sake.
        if not shift <= limit * tokens:  # what is no number is no judgement
            out.rejected["nonsense"] += 1
        else:
            yield turn.said(new.text)


class Languages:
    """Which languages the model knows well enough to judge a text in, by the first few texts of each."""

    def __init__(self, helpers: Helpers) -> None:
        self._helpers = helpers
        self._each: dict[str, list[float]] = {}

    def known(self, texts: Sequence[tuple[str, str]]) -> set[str]:
        """Of (language, text): the languages that the model knows. No more texts are read than it takes to tell."""
        assert self._helpers.score is not None
        for tongue, text in texts:
            values = self._each.setdefault(tongue, [])
            if len(values) < LANGUAGE_TEXTS and min(values, default=math.inf) > NATIVE:
                begins = text[:LANGUAGE_LENGTH]
                ((total, _),) = self._helpers.score([begins])
                values.append(total / max(len(begins.encode("utf-8", "replace")), 1))
        return {
            tongue
            for tongue, values in self._each.items()
            if min(values) <= NATIVE or statistics.median(values) <= FOREIGN
        }


def _known(scored: Sequence[tuple[str, str, tuple[float, int]]]) -> set[str]:
    """Of (language, text, score): the languages that the model knows well enough to judge a text in."""
    each: dict[str, list[float]] = {}
    for tongue, text, (total, _) in scored:
        each.setdefault(tongue, []).append(total / max(len(text.encode("utf-8", "replace")), 1))
    return {tongue for tongue, values in each.items() if statistics.median(values) <= FOREIGN}


def translated(turns: list[Turn], part: AugmentPart, helpers: Helpers, out: Batch) -> Iterator[Record]:
    for home in sorted({turn.tongue for turn in turns}):
        mine = [turn for turn in turns if turn.tongue == home]
        if not home:
            out.rejected["language not recognised"] += len(mine)
            continue
        plain = [turn for turn in mine if not KEPT.search(turn.text)]
        out.rejected["has code, quotations or addresses"] += len(mine) - len(plain)
        via = part.via if part.via != home else ("zh" if home == "en" else "en")
        yield from _judged(plain, _and_back([turn.text for turn in plain], home, via, helpers), part, helpers, out)


def _and_back(texts: list[str], home: str, via: str, helpers: Helpers) -> list[str]:
    """Each text in language `via` and back again; "" where one of the two ways failed."""
    assert helpers.translate is not None
    there = helpers.translate(texts, home, via) if texts else []
    whole = [n for n, text in enumerate(there) if text.strip()]
    back = helpers.translate([there[n] for n in whole], via, home) if whole else []
    found = dict(zip(whole, back, strict=True))
    return [found.get(n, "").strip() for n in range(len(texts))]


def _judged(turns: list[Turn], texts: list[str], part: AugmentPart, helpers: Helpers, out: Batch) -> Iterator[Record]:
    """The rows whose new text says something else than the old one in as likely words."""
    pairs = []
    for turn, new in zip(turns, texts, strict=True):
        if reason := _unlike(turn, new):
            out.rejected[reason] += 1
        else:
            pairs.append((turn, new))
    assert helpers.score is not None
    scores = helpers.score([text for turn, new in pairs for text in (turn.text, new)])
    before, after = scores[::2], scores[1::2]
    known = _known([(turn.tongue, turn.text, score) for (turn, _), score in zip(pairs, before, strict=True)])
    for (turn, new), (was, tokens), (now, count) in zip(pairs, before, after, strict=True):
        if turn.tongue not in known:
            out.rejected["language unknown to the model"] += 1
        elif not now / max(count, 1) - was / max(tokens, 1) <= math.log(part.nonsense):
            out.rejected["nonsense"] += 1
        else:
            yield turn.said(new)


def _unlike(turn: Turn, new: str) -> str:
    """Why a translation cannot stand for the turn; "" where nothing speaks against it."""
    if not new:
        return "not translated"
    if squeezed(new) == squeezed(turn.text):
        return "nothing new"
    if (language(new) or turn.tongue) != turn.tongue:
        return "other language"
    if sorted(re.findall(r"\d+", new)) != sorted(re.findall(r"\d+", turn.text)):
        return "other numbers"
    return "" if 0.5 <= len(new) / len(turn.text.strip()) <= 2 else "other length"
