"""Derived rows: more questions for the same kind of answer. Each names its parent and stays on the parent's side.

synonyms          words of a user's turn give way to others of the same meaning (`substitute.py`)
back_translation  a user's turn goes to another language and back
follow_up         the dialogue goes on: a model asks the next question and answers it (self-instruct, arXiv:2212.10560)
branch            the dialogue takes another way: another last question, answered by a model (a dialogue tree)

The first two leave answers as they are and change what is asked; a text that the model finds too unlikely beside its
parent is rejected. Of the last two only the new answer is trained: the others are trained where they come from.
"""

from __future__ import annotations

import math
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuneloop.data.augmenting import batchfile
from tuneloop.data.augmenting.grow import grown
from tuneloop.data.augmenting.substitute import KEPT, groups, substituted
from tuneloop.data.cleaning.languages import language
from tuneloop.data.dedupe import squeezed
from tuneloop.errors import DataError
from tuneloop.language import t
from tuneloop.records import Record
from tuneloop.sections import AugmentPart

Chat = list[dict[str, Any]]
Answer = Callable[[Sequence[Chat]], list[str]]
"""Chats -> the assistant's next turn of each; "" where there is none."""
Score = Callable[[Sequence[str]], list[tuple[float, int]]]
"""Texts -> negative log-likelihood of each, in nats, and the tokens it is of."""
Translate = Callable[[Sequence[str], str, str], list[str]]
"""Texts, from language, to language -> texts; "" where one could not be translated whole."""
BATCH = 32
"""Rows that are worked on at once; what a crash loses at most."""
FOREIGN = 1.4
"""Nats a byte from which a model does not know a language. Median over user turns: SmolLM2 0.96 in English and 1.88 in
Chinese, Gemma 3 270M 1.01 in Chinese."""
SECONDS = 10.0
"""Between two lines of progress."""


def _quiet(text: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Helpers:
    """What augmentation needs of later rooms and of other machines."""

    answer: Answer | None = None
    score: Score | None = None
    translate: Translate | None = None
    say: Callable[[str], None] = _quiet


NOBODY = Helpers()


@dataclass
class Batch:
    """What one batch of parents gave, and why others gave nothing: reason -> how many."""

    records: list[Record] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)


@dataclass
class Derived:
    """Derived rows of all methods: (method, record), and per method why others were not made."""

    records: list[tuple[str, Record]] = field(default_factory=list)
    rejected: dict[str, Counter[str]] = field(default_factory=dict)


Allowed = Callable[[str, list[Record]], list[str]]
"""Method, derived records -> for each "", or why it may not be trained on."""


def check(part: AugmentPart, helpers: Helpers) -> None:
    """Raise TL-DATA-AUGMENT where a method lacks a helper, TL-DATA-SYNONYMS where there are no words to use."""
    scored = ("synonyms", "back_translation")
    for method in part.methods:
        lacks = [
            name
            for name, needed, there in (
                ("score", method in scored, helpers.score),
                ("translate", method == "back_translation", helpers.translate),
                ("answer", method not in scored, helpers.answer),
            )
            if needed and there is None
        ]
        if lacks:
            raise DataError("TL-DATA-AUGMENT", where="prepare.augment.methods", method=method, lacks=", ".join(lacks))
    if "synonyms" in part.methods:
        groups(part.synonyms_file)


def augment(
    rows: Sequence[Record], part: AugmentPart, helpers: Helpers, seed: int, *, allowed: Allowed, folder: Path
) -> Derived:
    """Derived rows of the training rows, at most `part.share` of their number, shared out over the methods.

    Finished batches are kept in `folder` and not made again: answers of an endpoint cost money. Raises what `check` and
    the helpers raise.
    """
    check(part, helpers)
    out = Derived()
    room = math.floor(len(rows) * part.share)
    methods = list(dict.fromkeys(part.methods))
    for n, method in enumerate(methods):
        quota = room * (n + 1) // len(methods) - room * n // len(methods)
        work = _Work(rows, part, helpers, seed, method, folder)
        made: list[Record] = []
        while len(made) < quota and (more := work.some(quota - len(made), len(made), quota)):
            verdicts = allowed(method, more)
            work.rejected.update(reason for reason in verdicts if reason)
            made += [record for record, reason in zip(more, verdicts, strict=True) if not reason]
        helpers.say(_told(method, len(made), quota, work.rejected))
        out.records += [(method, record) for record in made]
        out.rejected[method] = +work.rejected
    return out


def reasons() -> dict[str, str]:
    """Why a row was not derived -> the reason in the chosen language."""
    return {
        "has tools": t("it has tools"),
        "no user turn": t("no user turn"),
        "no word to replace": t("no word to replace"),
        "nonsense": t("too unlikely beside its parent"),
        "language unknown to the model": t("in a language that the model does not know"),
        "language not recognised": t("language not recognised"),
        "has code, quotations or addresses": t("code, quotations or addresses"),
        "not translated": t("not translated whole"),
        "nothing new": t("nothing new"),
        "other language": t("came back in another language"),
        "other numbers": t("came back with other numbers"),
        "other length": t("came back much shorter or longer"),
        "no dialogue, or has tools": t("no dialogue, or it has tools"),
        "no question": t("the model wrote no question"),
        "no answer, or one that breaks off": t("no answer, or one that breaks off"),
        "nearly a held-out row": t("nearly a held-out row"),
    }


def _told(method: str, made: int, quota: int, rejected: Counter[str]) -> str:
    line = t("{method}: {n} of {of} rows", method=method, n=made, of=quota)
    why = ", ".join(f"{reasons()[reason]}: {n}" for reason, n in rejected.most_common(3))
    return t("{line} (parents without one: {why})", line=line, why=why) if why else line


class _Work:
    """One method's way through the training rows, in an order of its own, no row twice."""

    def __init__(
        self, rows: Sequence[Record], part: AugmentPart, helpers: Helpers, seed: int, method: str, folder: Path
    ) -> None:
        self.rows, self.part, self.helpers, self.seed, self.method, self.folder = (
            rows, part, helpers, seed, method, folder
        )  # fmt: skip
        self.order = list(range(len(rows)))
        random.Random(f"{seed}/{method}").shuffle(self.order)
        self.at = 0
        self.rejected: Counter[str] = Counter()
        self.said = time.monotonic()

    def some(self, most: int, made: int, quota: int) -> list[Record]:
        """The next derived rows, up to `most`; none when there is no parent left."""
        out: list[Record] = []
        while len(out) < most and self.at < len(self.order):
            size = min(BATCH, most - len(out))
            file = self.folder / f"{self.method}-{self.at:08d}-{size}"
            batch = batchfile.read(file)
            if batch is None:
                batch = self._batch([self.rows[n] for n in self.order[self.at : self.at + size]])
                batchfile.write(file, *batch)
            self.at += size
            out += batch[0]
            self.rejected.update(batch[1])
            if time.monotonic() - self.said > SECONDS:
                self.said = time.monotonic()
                self.helpers.say(t("{method}: {n} of {of} rows", method=self.method, n=made + len(out), of=quota))
        return out

    def _batch(self, parents: list[Record]) -> tuple[list[Record], Counter[str]]:
        make = {"synonyms": _synonyms, "back_translation": _translated, "follow_up": _grown, "branch": _grown}
        out = Batch()
        rng = random.Random(f"{self.seed}/{self.method}/{self.at}")
        for record in make[self.method](parents, self.method, self.part, self.helpers, rng, out):
            out.records.append(record)
        return out.records, out.rejected


@dataclass(frozen=True)
class _Turn:
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


def _turns(parents: Sequence[Record], rng: random.Random, out: Batch) -> list[_Turn]:
    """One user's turn of each row that has one. With tools none may change: a call repeats what was asked, in words."""
    turns = []
    for record in parents:
        places = [n for n, m in enumerate(record.messages) if m.role == "user" and m.content.strip()]
        if _tooled(record):
            out.rejected["has tools"] += 1
        elif not places:
            out.rejected["no user turn"] += 1
        else:
            at = rng.choice(places)
            turns.append(_Turn(record, at, record.messages[at].content, tongue(record)))
    return turns


def _tooled(record: Record) -> bool:
    return bool(record.tools) or any(m.tool_calls or m.role == "tool" for m in record.messages)


def tongue(record: Record) -> str:
    """The language of a dialogue's user, as `language` names it."""
    said = "\n".join(m.content[:300] for m in record.messages if m.role == "user")
    return language(said) or language("\n".join(m.content[:300] for m in record.messages))


def _synonyms(
    parents: list[Record], method: str, part: AugmentPart, helpers: Helpers, rng: random.Random, out: Batch
) -> Iterator[Record]:
    table = groups(part.synonyms_file)
    changed = []
    for turn in _turns(parents, rng, out):
        new = substituted(turn.text, table, rng)
        if new is None:
            out.rejected["no word to replace"] += 1
        else:
            changed.append((turn, new))
    assert helpers.score is not None
    before = helpers.score([new.before for _, new in changed])
    after = helpers.score([new.after for _, new in changed])
    known = _known([(turn.tongue, new.before, score) for (turn, new), score in zip(changed, before, strict=True)])
    for (turn, new), (was, tokens), (now, _) in zip(changed, before, after, strict=True):
        # Counted in the tokens of the old sentence: a nonsense word of many likely pieces must not pass for their sake.
        if turn.tongue not in known:
            out.rejected["language unknown to the model"] += 1
        elif now - was > math.log(part.nonsense) * tokens:
            out.rejected["nonsense"] += 1
        else:
            yield turn.said(new.text)


def _known(scored: Sequence[tuple[str, str, tuple[float, int]]]) -> set[str]:
    """Of (language, text, score): the languages that the model knows well enough to judge a text in."""
    each: dict[str, list[float]] = {}
    for tongue, text, (total, _) in scored:
        each.setdefault(tongue, []).append(total / max(len(text.encode("utf-8", "replace")), 1))
    return {tongue for tongue, values in each.items() if statistics.median(values) <= FOREIGN}


def _translated(
    parents: list[Record], method: str, part: AugmentPart, helpers: Helpers, rng: random.Random, out: Batch
) -> Iterator[Record]:
    turns = _turns(parents, rng, out)
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


def _judged(turns: list[_Turn], texts: list[str], part: AugmentPart, helpers: Helpers, out: Batch) -> Iterator[Record]:
    """The rows whose new text says something else than the old one in as likely words."""
    pairs = []
    for turn, new in zip(turns, texts, strict=True):
        if reason := _unlike(turn, new):
            out.rejected[reason] += 1
        else:
            pairs.append((turn, new))
    assert helpers.score is not None
    before = helpers.score([turn.text for turn, _ in pairs])
    after = helpers.score([new for _, new in pairs])
    known = _known([(turn.tongue, turn.text, score) for (turn, _), score in zip(pairs, before, strict=True)])
    for (turn, new), (was, tokens), (now, count) in zip(pairs, before, after, strict=True):
        if turn.tongue not in known:
            out.rejected["language unknown to the model"] += 1
        elif now / max(count, 1) - was / max(tokens, 1) > math.log(part.nonsense):
            out.rejected["nonsense"] += 1
        else:
            yield turn.said(new)


def _unlike(turn: _Turn, new: str) -> str:
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


def _grown(
    parents: list[Record], method: str, part: AugmentPart, helpers: Helpers, rng: random.Random, out: Batch
) -> Iterator[Record]:
    assert helpers.answer is not None
    fit = [r for r in parents if r.kind == "chat" and not _tooled(r) and any(m.role == "user" for m in r.messages)]
    out.rejected["no dialogue, or has tools"] += len(parents) - len(fit)
    for made, reason in grown(fit, [tongue(r) for r in fit], helpers.answer, other=method == "branch"):
        if made is None:
            out.rejected[reason] += 1
        else:
            yield made
