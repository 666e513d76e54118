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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tuneloop.base.errors import DataError
from tuneloop.base.language import listed, t
from tuneloop.base.records import Record
from tuneloop.data.augmenting.calls import Calls
from tuneloop.data.augmenting.dialogue_growth import grown
from tuneloop.data.augmenting.helpers import NOBODY as NOBODY
from tuneloop.data.augmenting.helpers import Batch, Score
from tuneloop.data.augmenting.helpers import Chat as Chat
from tuneloop.data.augmenting.helpers import Helpers as Helpers
from tuneloop.data.augmenting.memory import Memory
from tuneloop.data.augmenting.progress import Progress
from tuneloop.data.augmenting.reword import Languages, Turn, changed, likely, tongue, tooled, translated, turns
from tuneloop.data.augmenting.substitute import Changed, groups
from tuneloop.recipe.schema import AugmentPart

BATCH = 32
"""Rows that are worked on at once."""
ANSWERS, SCORES = 8, 16
"""Texts that a model writes, or judges, at a time; what a crash loses at most."""
HOPELESS = 16
"""Dialogues in a row that a model grew no row from: then it is not asked any more."""
CALLS = {"synonyms": 1, "back_translation": 3, "follow_up": 2, "branch": 2}
"""How often a model is called for a batch, beside the few texts by which it is told which languages it knows."""


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
            raise DataError("TL-DATA-AUGMENT", where="prepare.augment.methods", method=method, lacks=listed(lacks))
    if "synonyms" in part.methods:
        groups(part.synonyms_file)


def augment(
    rows: Sequence[Record], part: AugmentPart, helpers: Helpers, seed: int, *, allowed: Allowed, folder: Path
) -> Derived:
    """Derived rows of the training rows, at most `part.share` of their number, shared out over the methods.

    What a model has answered is kept in `folder` and not asked again: it costs time or money. Raises what `check` and
    the helpers raise.
    """
    check(part, helpers)
    out = Derived()
    room = math.floor(len(rows) * part.share)
    methods = list(dict.fromkeys(part.methods))
    for n, method in enumerate(methods):
        quota = room * (n + 1) // len(methods) - room * n // len(methods)
        if not quota:
            out.rejected[method] = Counter()
            helpers.say(_told(method, 0, 0, Counter()))
            continue
        work = _Work(rows, part, helpers, seed, method, quota, folder)
        made: list[Record] = []
        while len(made) < quota and (more := work.some(quota - len(made))):
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
    why = listed(f"{reasons()[reason]}: {n}" for reason, n in (+rejected).most_common(3))
    return t("{line} (parents without one: {why})", line=line, why=why) if why else line


def _remembering(helpers: Helpers, calls: Calls) -> Helpers:
    """The helpers, called in slices that are remembered."""

    def sliced(name: str, make: Callable[..., list[Any]] | None, size: int) -> Any:
        return partial(calls.sliced, name, make, size) if make is not None else None

    return replace(
        helpers,
        answer=sliced("answer", helpers.answer, ANSWERS),
        ask=sliced("ask", helpers.ask or helpers.answer, ANSWERS),
        score=sliced("score", helpers.score, SCORES),
        shift=sliced("shift", helpers.shift or (helpers.score and partial(_shift, helpers.score)), SCORES),
        translate=sliced("translate", helpers.translate, ANSWERS),
    )


def _shift(score: Score, pairs: Sequence[tuple[str, str]], limit: float) -> list[tuple[float, int]]:
    scores = score([text for pair in pairs for text in pair])
    return [(now - was, tokens) for (was, tokens), (now, _) in zip(scores[::2], scores[1::2], strict=True)]


class _Work:
    """One method's way through the training rows, in an order of its own, no row twice."""

    def __init__(
        self,
        rows: Sequence[Record],
        part: AugmentPart,
        helpers: Helpers,
        seed: int,
        method: str,
        quota: int,
        folder: Path,
    ) -> None:
        self.rows, self.part, self.seed, self.method = rows, part, seed, method
        self.progress = Progress(method, quota, len(rows), helpers.say, helpers.about)
        memory = Memory(folder / f"{method}.jsonl")
        self.helpers = _remembering(helpers, Calls(memory, self.progress, helpers.watch))
        self.languages = Languages(_remembering(helpers, Calls(memory, None, helpers.watch)))
        self.order = list(range(len(rows)))
        random.Random(f"{seed}/{method}").shuffle(self.order)
        self.at = self.dry = 0
        self.rejected: Counter[str] = Counter()

    def some(self, most: int) -> list[Record]:
        """The next derived rows, up to `most`; none when there is no parent left."""
        out: list[Record] = []
        while len(out) < most and self.at < len(self.order):
            began = self.at
            batch = self._batch(min(BATCH, most - len(out)))
            self.progress.ended(len(batch.records))
            out += batch.records
            self.rejected.update(batch.rejected)
            self.dry = 0 if batch.records else self.dry + self.at - began
            if self.dry >= HOPELESS and self.method in ("follow_up", "branch"):
                self.at = len(self.order)
                self.helpers.say(
                    t("{method}: {n} rows in a row gave nothing, so no more are tried", method=self.method, n=self.dry)
                )
        return out

    def _next(self) -> tuple[Record, random.Random]:
        """The next parent, and what is drawn by for it: the same whatever it is worked on with."""
        self.at += 1
        return self.rows[self.order[self.at - 1]], random.Random(f"{self.seed}/{self.method}/{self.at}")

    def _batch(self, need: int) -> Batch:
        out, began = Batch(), self.at
        if self.method == "synonyms":  # so many that can change: looking costs nothing beside judging
            found: list[tuple[Turn, Changed]] = []
            while len(found) < need and self.at < len(self.order):
                found += changed(*self._next(), groups(self.part.synonyms_file), out)
            self.progress.batch(self.at - began, CALLS[self.method], len(found))
            made = likely(found, self.languages, self.part, self.helpers, out)
        else:
            parents = [self._next() for _ in range(min(need, len(self.order) - self.at))]
            self.progress.batch(len(parents), CALLS[self.method])
            if self.method == "back_translation":
                made = translated([turn for p in parents for turn in turns(*p, out)], self.part, self.helpers, out)
            else:
                made = _grown([record for record, _ in parents], self.method, self.helpers, out)
        out.records += made
        return out


def _grown(parents: list[Record], method: str, helpers: Helpers, out: Batch) -> Iterator[Record]:
    assert helpers.answer is not None
    fit = [r for r in parents if r.kind == "chat" and not tooled(r) and any(m.role == "user" for m in r.messages)]
    out.rejected["no dialogue, or has tools"] += len(parents) - len(fit)
    tongues = [tongue(r) for r in fit]
    for made, reason in grown(fit, tongues, helpers.answer, other=method == "branch", ask=helpers.ask):
        if made is None:
            out.rejected[reason] += 1
        else:
            yield made
