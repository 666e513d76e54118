"""Derived rows: more questions for the same kind of answer. Each names its parent and stays on the parent's side.

synonyms          words of a user's turn are replaced by synonyms (`substitute.py`)
back_translation  a user's turn is translated to another language and back
follow_up         one more turn: a model writes the next question and answers it (self-instruct, arXiv:2212.10560)
branch            another last turn: a model writes another last question and answers it (a dialogue tree)

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
from tuneloop.data.augmenting.helpers import Chat as Chat
from tuneloop.data.augmenting.helpers import DerivedBatch, Score
from tuneloop.data.augmenting.helpers import Helpers as Helpers
from tuneloop.data.augmenting.memory import Memory
from tuneloop.data.augmenting.progress import Progress
from tuneloop.data.augmenting.reword import (
    Languages,
    UserTurn,
    changed,
    dialogue_language,
    likely,
    tooled,
    translated,
    turns,
)
from tuneloop.data.augmenting.substitute import Changed, groups
from tuneloop.data.kinds import KINDS
from tuneloop.recipe.schema import AugmentPart

BATCH = 32
"""Parent rows of one batch."""
ANSWERS, SCORES = 8, 16
"""Texts that a model generates, or scores, in one call; what a crash loses at most."""
HOPELESS = 16
"""Parents in a row without a derived row, after which a method stops (follow_up, branch)."""
CALLS = {"synonyms": 1, "back_translation": 3, "follow_up": 2, "branch": 2}
"""Model calls of one batch, without those that test which languages the model knows."""


@dataclass
class Derived:
    """Derived rows of all methods: (method, record), and by method the reasons of rejected parents."""

    records: list[tuple[str, Record]] = field(default_factory=list)
    rejected: dict[str, Counter[str]] = field(default_factory=dict)


Allowed = Callable[[str, list[Record]], list[str]]
"""Method, derived records -> for each "", or the reason why it may not be trained on."""


def check(part: AugmentPart, helpers: Helpers) -> None:
    """Raise TL-DATA-AUGMENT where a method lacks a helper, TL-DATA-SYNONYMS where there are no synonyms."""
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
    """Rows derived from the training rows, at most `part.share` of their number, divided among the methods.

    What a model has answered is kept in `folder` and not asked again: it costs time or money. Raises what `check` and
    the helpers raise.
    """
    check(part, helpers)
    out = Derived()
    limit = math.floor(len(rows) * part.share)
    methods = list(dict.fromkeys(part.methods))
    for n, method in enumerate(methods):
        quota = limit * (n + 1) // len(methods) - limit * n // len(methods)
        if not quota:
            out.rejected[method] = Counter()
            helpers.say(_progress_line(method, 0, 0, Counter()))
            continue
        work = _Work(rows, part, helpers, seed, method, quota, folder)
        derived: list[Record] = []
        while len(derived) < quota and (more := work.some(quota - len(derived))):
            verdicts = allowed(method, more)
            work.rejected.update(reason for reason in verdicts if reason)
            derived += [record for record, reason in zip(more, verdicts, strict=True) if not reason]
        helpers.say(_progress_line(method, len(derived), quota, work.rejected))
        out.records += [(method, record) for record in derived]
        out.rejected[method] = +work.rejected
    return out


def reasons() -> dict[str, str]:
    """Reasons for a rejected parent -> their text in the chosen language."""
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


def _progress_line(method: str, count: int, quota: int, rejected: Counter[str]) -> str:
    line = t("{method}: {n} of {of} rows", method=method, n=count, of=quota)
    why = listed(f"{reasons()[reason]}: {n}" for reason, n in (+rejected).most_common(3))
    return t("{line} (parents without one: {why})", line=line, why=why) if why else line


def _remembering(helpers: Helpers, calls: Calls) -> Helpers:
    """The helpers, called in slices that are cached on disk."""

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
    """One method's pass over the training rows, shuffled by the seed, no row twice."""

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
        """The next parent, and its random generator, which does not depend on its batch."""
        self.at += 1
        return self.rows[self.order[self.at - 1]], random.Random(f"{self.seed}/{self.method}/{self.at}")

    def _batch(self, need: int) -> DerivedBatch:
        out, began = DerivedBatch(), self.at
        if self.method == "synonyms":  # so many that can change: looking costs nothing beside judging
            candidates: list[tuple[UserTurn, Changed]] = []
            while len(candidates) < need and self.at < len(self.order):
                candidates += changed(*self._next(), groups(self.part.synonyms_file), out)
            self.progress.batch(self.at - began, CALLS[self.method], len(candidates))
            derived = likely(candidates, self.languages, self.part, self.helpers, out)
        else:
            parents = [self._next() for _ in range(min(need, len(self.order) - self.at))]
            self.progress.batch(len(parents), CALLS[self.method])
            if self.method == "back_translation":
                derived = translated([turn for p in parents for turn in turns(*p, out)], self.part, self.helpers, out)
            else:
                derived = _grown([record for record, _ in parents], self.method, self.helpers, out)
        out.records += derived
        return out


def _grown(parents: list[Record], method: str, helpers: Helpers, out: DerivedBatch) -> Iterator[Record]:
    assert helpers.answer is not None
    dialogues = [
        r for r in parents if KINDS[r.kind].imitated and not tooled(r) and any(m.role == "user" for m in r.messages)
    ]
    out.rejected["no dialogue, or has tools"] += len(parents) - len(dialogues)
    languages = [dialogue_language(r) for r in dialogues]
    for derived, reason in grown(dialogues, languages, helpers.answer, other=method == "branch", ask=helpers.ask):
        if derived is None:
            out.rejected[reason] += 1
        else:
            yield derived
