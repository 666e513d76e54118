"""Groups of related rows, which a split must not separate.

Four relations. Rows made from one source row, and dialogues that share exchanges or contain each other, are always one
group. So are near duplicates, rows that differ in a tenth, and rows with the same question, unless hardly a row could
be held out then; `holdout.py` decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tuneloop.base.records import LedgerEntry
from tuneloop.data.dedupe.contained import Containment, held_texts
from tuneloop.data.dedupe.exact import Compared, dialogue_text, near_repeats
from tuneloop.data.dedupe.fingerprints import Fingerprints, related
from tuneloop.data.dedupe.near import Pairs, TextOf, contaminated, groups
from tuneloop.data.dedupe.shared_turns import CHAIN, FEW, SharedTurns
from tuneloop.data.dedupe.shingles import I64
from tuneloop.data.ledger import Action
from tuneloop.data.version.rows import PreparedRows, RowSubset
from tuneloop.data.version.split import SIDES, Split


def ledger_entry(rows: PreparedRows, action: Action, step: str, reason: str, at: int, detail: str) -> LedgerEntry:
    return LedgerEntry(action, step, reason, rows.files[at], rows.lines[at], rows.ids[at], detail)


@dataclass(frozen=True)
class Families:
    """Group labels: the first row of each row's group, int64 [rows].

    `levels` begin with the strictest groups and end with those that are never torn apart: one row's pieces, and
    dialogues that share exchanges. `alike` nearly repeat each other. `close` are of one group for anything but their
    question, `same_question` for that; these two join rows of given sides too. `phrases` are rows of set phrases that
    others hold.
    """

    levels: list[I64]
    alike: I64
    close: I64
    same_question: I64
    phrases: set[int]


class Relations:
    """The relations between rows: row numbers by side, with sketches, exchanges and fingerprints; a row without a given
    side counts as "train"."""

    def __init__(self, rows: PreparedRows, *, split: bool) -> None:
        self.rows, self.split = rows, split
        self.numbers: dict[Split, list[int]] = {side: [] for side in SIDES}
        for at, given in enumerate(rows.given):
            self.numbers[given or "train"].append(at)
        self.some = {side: RowSubset(rows, numbers) for side, numbers in self.numbers.items()}
        self.compared = {side: Compared() for side in SIDES}
        self.turns, self.prints = SharedTurns(), Fingerprints()
        at = 0
        for batch in rows.batches():
            texts = [dialogue_text(record) for record in batch]
            for side in SIDES:
                own = [n for n, given in enumerate(rows.given[at : at + len(batch)]) if (given or "train") == side]
                self.compared[side].add([batch[n] for n in own], [texts[n] for n in own])
            if split:
                self.turns.add(batch)
                self.prints.add(texts)
            at += len(batch)

    @cached_property
    def held(self) -> Containment:
        """The rows whose whole text is contained in another row's."""
        return held_texts(self.rows.wholes)

    def contaminated(self, threshold: float, gone: set[int]) -> Iterator[LedgerEntry]:
        """Drop train rows that nearly repeat a row of given test or validation files, and validation rows those of
        test; so for rows that contain a dialogue of such a file."""
        held: tuple[tuple[Split, Split], ...] = (("test", "validation"), ("test", "train"), ("validation", "train"))
        for above, below in held:
            if not self.numbers[above] or not self.numbers[below]:
                continue
            tables = self.compared[above].sketches, self.compared[below].sketches
            pairs = contaminated(*tables, self._texts(above), self._texts(below), threshold)
            for i, j, share in zip(pairs.i.tolist(), pairs.j.tolist(), pairs.jaccard.tolist(), strict=True):
                at, twin = self.numbers[below][i], self.numbers[above][j]
                if at not in gone:
                    gone.add(at)
                    detail = f"{self.rows.place(twin)} {share:.2f}"
                    yield ledger_entry(self.rows, "dropped", "dedupe", "held out elsewhere", at, detail)
            holding = self.turns.inside(self.numbers[above], self.numbers[below], self.held)
            for at, twin in sorted((at, twin) for twin, at in holding):
                if at not in gone:
                    gone.add(at)
                    yield ledger_entry(
                        self.rows, "dropped", "dedupe", "holds a held-out row", at, self.rows.place(twin)
                    )

    def _texts(self, side: Split) -> TextOf:
        own = np.asarray(self.numbers[side], np.int64)
        return lambda numbers: self._read(own[numbers])

    def _read(self, numbers: I64) -> list[str]:
        return [dialogue_text(record) for record in self.rows.several(numbers)]

    def pairs(self, side: Split, threshold: float) -> Pairs:
        return self.compared[side].pairs(self._texts(side), threshold)

    def repeated(self, side: Split, pairs: Pairs, threshold: float, gone: set[int]) -> list[LedgerEntry]:
        """Drop the near duplicates inside a side, all but the first of each."""
        numbers = self.numbers[side]
        there = np.asarray([at not in gone for at in numbers], bool)
        present = there[pairs.i] & there[pairs.j]
        pairs = Pairs(pairs.i[present], pairs.j[present], pairs.jaccard[present])
        first, entries = near_repeats(self.some[side], pairs, threshold)
        gone.update(numbers[n] for n in np.flatnonzero(first != np.arange(len(first))).tolist())
        return entries

    def families(self, near: Pairs) -> Families:
        """The group labels of the rows without a given held-out side; `near` are their near-duplicate pairs."""
        train = np.asarray(self.numbers["train"], np.int64)
        alike = train[near.i], train[near.j]
        none = (train[:0], train[:0])
        turns = self.turns.turns(self.held) if self.split else None
        phrases = turns.phrases if turns else train[:0]
        same_question = self.turns.questions() if self.split else none
        telling = self.turns.questions(phrases) if self.split else none
        shared = (turns.i, turns.j) if turns else none
        certain = self._grouped(_sources(self.rows), shared)
        repeated = self._grouped((certain, np.arange(len(certain))), alike)
        tenth = self._unchained(alike, self._tenths(repeated, phrases)) if self.split else none
        close = self._grouped((repeated, np.arange(len(repeated))), tenth)
        every = self._grouped((close, np.arange(len(close))), telling)
        return Families(
            [every, close, repeated, certain],
            self._grouped(alike),
            _grouped(len(close), (certain, np.arange(len(certain))), shared, alike, tenth),
            _grouped(len(close), same_question),
            set(phrases.tolist()),
        )

    def _tenths(self, known: I64, but: I64) -> tuple[I64, I64]:
        i, j = self.prints.candidates(known)
        apart = ~(np.isin(i, but) | np.isin(j, but))
        i, j = i[apart], j[apart]
        same = related(i, j, self._read)
        return i[same], j[same]

    def _unchained(self, near: tuple[I64, I64], tenth: tuple[I64, I64]) -> tuple[I64, I64]:
        """The links `tenth` without those of groups that both kinds of links make too large."""
        group = self._grouped(near, tenth)
        size = np.bincount(group, minlength=len(group))[group]
        bounded = size[tenth[0]] <= max(FEW, CHAIN * len(group))
        return tenth[0][bounded], tenth[1][bounded]

    def _grouped(self, *links: tuple[I64, I64]) -> I64:
        """The first row of each row's group, int64 [rows]; rows of given held-out files are linked to none."""
        free = np.zeros(len(self.rows), bool)
        free[self.numbers["train"]] = True
        i, j = (np.concatenate(side) for side in zip(*links, strict=True))
        inside = free[i] & free[j]
        return _grouped(len(free), (i[inside], j[inside]))


def _grouped(rows: int, *links: tuple[I64, I64]) -> I64:
    i, j = (np.concatenate(side).astype(np.int32) for side in zip(*links, strict=True))
    return groups(Pairs(i, j, np.ones(len(i), np.float32)), rows).astype(np.int64)


def _sources(rows: PreparedRows) -> tuple[I64, I64]:
    """Each record, and the first one that was made from the same row of the same file."""
    first: dict[tuple[str, int], int] = {}
    out = [first.setdefault(place, at) for at, place in enumerate(zip(rows.files, rows.lines, strict=True))]
    return np.asarray(out, np.int64), np.arange(len(out))
