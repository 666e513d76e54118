"""Paraphrases of a user's turn, by synonyms or back-translation, filtered by a language model's likelihood."""

from __future__ import annotations

import math
import random
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tuneloop.base.records import Record
from tuneloop.data.augmenting.helpers import DerivedBatch, Helpers
from tuneloop.data.augmenting.substitute import VERBATIM, Changed, Table, substituted
from tuneloop.data.cleaning.languages import language
from tuneloop.data.dedupe.exact import squeezed
from tuneloop.recipe.schema import AugmentPart

LANGUAGE_TEXTS, LANGUAGE_LENGTH = 4, 60
"""Texts, and first characters of each, that test whether a model knows a language. Turns, not sentences: of a
short sentence the first tokens, which nothing foretells, are too large a share."""
NATIVE, FOREIGN = 1.2, 1.4
"""Thresholds in nats a byte: one turn up to the first shows that a model knows a language; else the median must be up
to the second. Of 97 Chinese turns (EmoLLM, gaokao_zh) SmolLM2 needs 1.5 to 2.6, of four the median is 1.6 to 2.2; Gemma
3 270M needs 0.7 to 1.9 of one, and 0.8 to 1.3 of four. In English (Alpaca) both need 0.7 to 1.2 of four."""


@dataclass(frozen=True)
class UserTurn:
    """A user's turn to paraphrase: its record and index, its text, and the language of the dialogue."""

    record: Record
    at: int
    text: str
    language: str

    def with_text(self, text: str) -> Record:
        """The derived record with another text in this turn."""
        messages = list(self.record.messages)
        messages[self.at] = replace(messages[self.at], content=text)
        return replace(self.record, messages=tuple(messages), parent=self.record.id)


def turns(record: Record, rng: random.Random, out: DerivedBatch) -> list[UserTurn]:
    """One random user's turn of a row, or []. With tools none may change: a call repeats the words of the question."""
    places = [n for n, m in enumerate(record.messages) if m.role == "user" and m.content.strip()]
    if tooled(record):
        out.rejected["has tools"] += 1
    elif not places:
        out.rejected["no user turn"] += 1
    else:
        at = rng.choice(places)
        return [UserTurn(record, at, record.messages[at].content, dialogue_language(record))]
    return []


def tooled(record: Record) -> bool:
    return bool(record.tools) or any(m.tool_calls or m.role == "tool" for m in record.messages)


def dialogue_language(record: Record) -> str:
    """The language code of the user's turns, else of the dialogue."""
    text = "\n".join(m.content[:300] for m in record.messages if m.role == "user")
    return language(text) or language("\n".join(m.content[:300] for m in record.messages))


def changed(record: Record, rng: random.Random, table: Table, out: DerivedBatch) -> list[tuple[UserTurn, Changed]]:
    """A turn of the row with synonyms, or []."""
    changes = []
    for turn in turns(record, rng, out):
        new = substituted(turn.text, table, rng)
        if new is None:
            out.rejected["no word to replace"] += 1
        else:
            changes.append((turn, new))
    return changes


def likely(
    changes: list[tuple[UserTurn, Changed]],
    languages: Languages,
    part: AugmentPart,
    helpers: Helpers,
    out: DerivedBatch,
) -> Iterator[Record]:
    """The rows whose changed sentence is about as likely as the old one under the model."""
    assert helpers.shift is not None
    known = languages.known([(turn.language, turn.text) for turn, _ in changes])
    judged = [(turn, new) for turn, new in changes if turn.language in known]
    out.rejected["language unknown to the model"] += len(changes) - len(judged)
    limit = math.log(part.nonsense)
    shifts = helpers.shift([(new.before, new.after) for _, new in judged], limit)
    for (turn, new), (shift, tokens) in zip(judged, shifts, strict=True):
        # Counted in the tokens of the old sentence: a nonsense word of many likely pieces must not pass for their sake.
        if not shift <= limit * tokens:  # what is no number is no judgement
            out.rejected["nonsense"] += 1
        else:
            yield turn.with_text(new.text)


class Languages:
    """The languages that the model knows well enough to score, tested on the first texts of each."""

    def __init__(self, helpers: Helpers) -> None:
        self._helpers = helpers
        self._each: dict[str, list[float]] = {}

    def known(self, texts: Sequence[tuple[str, str]]) -> set[str]:
        """The known languages of (language, text) pairs. No more texts are scored than the test needs."""
        assert self._helpers.score is not None
        for code, text in texts:
            values = self._each.setdefault(code, [])
            if len(values) < LANGUAGE_TEXTS and min(values, default=math.inf) > NATIVE:
                begins = text[:LANGUAGE_LENGTH]
                ((total, _),) = self._helpers.score([begins])
                values.append(total / max(len(begins.encode("utf-8", "replace")), 1))
        return {
            code for code, values in self._each.items() if min(values) <= NATIVE or statistics.median(values) <= FOREIGN
        }


def _known(scored: Sequence[tuple[str, str, tuple[float, int]]]) -> set[str]:
    """The known languages of (language, text, score) triples."""
    each: dict[str, list[float]] = {}
    for code, text, (total, _) in scored:
        each.setdefault(code, []).append(total / max(len(text.encode("utf-8", "replace")), 1))
    return {code for code, values in each.items() if statistics.median(values) <= FOREIGN}


def translated(turns: list[UserTurn], part: AugmentPart, helpers: Helpers, out: DerivedBatch) -> Iterator[Record]:
    for home in sorted({turn.language for turn in turns}):
        mine = [turn for turn in turns if turn.language == home]
        if not home:
            out.rejected["language not recognised"] += len(mine)
            continue
        translatable = [turn for turn in mine if not VERBATIM.search(turn.text)]
        out.rejected["has code, quotations or addresses"] += len(mine) - len(translatable)
        via = part.via if part.via != home else ("zh" if home == "en" else "en")
        yield from _judged(
            translatable, _and_back([turn.text for turn in translatable], home, via, helpers), part, helpers, out
        )


def _and_back(texts: list[str], home: str, via: str, helpers: Helpers) -> list[str]:
    """The back-translations of the texts through language `via`; "" where one of the two translations failed."""
    assert helpers.translate is not None
    there = helpers.translate(texts, home, via) if texts else []
    numbers = [n for n, text in enumerate(there) if text.strip()]
    back = helpers.translate([there[n] for n in numbers], via, home) if numbers else []
    returned = dict(zip(numbers, back, strict=True))
    return [returned.get(n, "").strip() for n in range(len(texts))]


def _judged(
    turns: list[UserTurn], texts: list[str], part: AugmentPart, helpers: Helpers, out: DerivedBatch
) -> Iterator[Record]:
    """The rows whose new text differs and is about as likely as the old one."""
    pairs = []
    for turn, new in zip(turns, texts, strict=True):
        if reason := _unlike(turn, new):
            out.rejected[reason] += 1
        else:
            pairs.append((turn, new))
    assert helpers.score is not None
    scores = helpers.score([text for turn, new in pairs for text in (turn.text, new)])
    before, after = scores[::2], scores[1::2]
    known = _known([(turn.language, turn.text, score) for (turn, _), score in zip(pairs, before, strict=True)])
    for (turn, new), (was, tokens), (now, count) in zip(pairs, before, after, strict=True):
        if turn.language not in known:
            out.rejected["language unknown to the model"] += 1
        elif not now / max(count, 1) - was / max(tokens, 1) <= math.log(part.nonsense):
            out.rejected["nonsense"] += 1
        else:
            yield turn.with_text(new)


def _unlike(turn: UserTurn, new: str) -> str:
    """The reason to reject a back-translation; "" where there is none."""
    if not new:
        return "not translated"
    if squeezed(new) == squeezed(turn.text):
        return "nothing new"
    if (language(new) or turn.language) != turn.language:
        return "other language"
    if sorted(re.findall(r"\d+", new)) != sorted(re.findall(r"\d+", turn.text)):
        return "other numbers"
    return "" if 0.5 <= len(new) / len(turn.text.strip()) <= 2 else "other length"
