"""Which rows belong together, so that a split must not tear them apart.

Four ways, from the strictest on. All that was made from one source row, and dialogues that share exchanges or lie in
each other, are one group whatever it costs. So are rows that nearly repeat each other, those that are the same but for
a tenth, and those that ask the same question, unless hardly a row could be held out then; `holdout.py` decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tuneloop.base.records import LedgerEntry
from tuneloop.data.dedupe.contained import Held, held_texts
from tuneloop.data.dedupe.exact import Compared, dialogue_text, near_repeats
from tuneloop.data.dedupe.fingerprints import Fingerprints, related
from tuneloop.data.dedupe.near import Pairs, TextOf, contaminated, groups
from tuneloop.data.dedupe.shared_turns import CHAIN, FEW, SharedTurns
from tuneloop.data.dedupe.shingles import I64
from tuneloop.data.ledger import Action
from tuneloop.data.version.rows import PreparedRows, RowSubset
from tuneloop.data.version.split import SIDES, Split


def entry(rows: PreparedRows, action: Action, step: str, reason: str, at: int, detail: str) -> LedgerEntry:
    return LedgerEntry(action, step, reason, rows.files[at], rows.lines[at], rows.ids[at], detail)


@dataclass(frozen=True)
class Families:
    """Groups of rows: of each row the number of its group's first one, int64 [rows].

    `levels` begin with the strictest groups and end with those that are never torn apart: one row's pieces, and
    dialogues that share exchanges. `alike` nearly repeat each other. `close` are of one group for anything but their
    question, `asked` for that; these two join rows of given sides too. `phrases` are rows of set phrases that others
    hold.
    """

    levels: list[I64]
    alike: I64
    close: I64
    asked: I64
    phrases: set[int]


class Relations:
    """The rows of each side by their numbers, and what they are compared by; a row whose side is not given counts as
    "train"."""

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
    def held(self) -> Held:
        """Whose whole text lies in another row's."""
        return held_texts(self.rows.wholes)

    def contaminated(self, threshold: float, gone: set[int]) -> Iterator[LedgerEntry]:
        """Rows that nearly repeat one of a file given as test go, from validation too; then those of validation. So do
        rows that hold a dialogue of such a file whole."""
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
                    yield entry(self.rows, "dropped", "dedupe", "held out elsewhere", at, detail)
            holding = self.turns.inside(self.numbers[above], self.numbers[below], self.held)
            for at, twin in sorted((at, twin) for twin, at in holding):
                if at not in gone:
                    gone.add(at)
                    yield entry(self.rows, "dropped", "dedupe", "holds a held-out row", at, self.rows.place(twin))

    def _texts(self, side: Split) -> TextOf:
        own = np.asarray(self.numbers[side], np.int64)
        return lambda numbers: self._read(own[numbers])

    def _read(self, numbers: I64) -> list[str]:
        return [dialogue_text(record) for record in self.rows.several(numbers)]

    def pairs(self, side: Split, threshold: float) -> Pairs:
        return self.compared[side].pairs(self._texts(side), threshold)

    def repeated(self, side: Split, pairs: Pairs, threshold: float, gone: set[int]) -> list[LedgerEntry]:
        """The near repetitions inside a side go, all but the first of each."""
        numbers = self.numbers[side]
        there = np.asarray([at not in gone for at in numbers], bool)
        both = there[pairs.i] & there[pairs.j]
        pairs = Pairs(pairs.i[both], pairs.j[both], pairs.jaccard[both])
        first, entries = near_repeats(self.some[side], pairs, threshold)
        gone.update(numbers[n] for n in np.flatnonzero(first != np.arange(len(first))).tolist())
        return entries

    def families(self, near: Pairs) -> Families:
        """The groups of the rows whose side is not given as a held-out one; `near` are their near pairs."""
        train = np.asarray(self.numbers["train"], np.int64)
        alike = train[near.i], train[near.j]
        none = (train[:0], train[:0])
        turns = self.turns.turns(self.held) if self.split else None
        phrases = turns.phrases if turns else train[:0]
        asked = self.turns.questions() if self.split else none
        telling = self.turns.questions(phrases) if self.split else none
        shared = (turns.i, turns.j) if turns else none
        certain = self._grouped(_sources(self.rows), shared)
        repeated = self._grouped((certain, np.arange(len(certain))), alike)
        tenth = self._unchained(alike, self._tenths(repeated, phrases)) if self.split else none
        close = self._grouped((repeated, np.arange(len(repeated))), tenth)
        every = self._grouped((close, np.arange(len(close))), telling)
        return Families(
            [every, close, repeated, certain], self._grouped(alike),
            _grouped(len(close), (certain, np.arange(len(certain))), shared, alike, tenth), _grouped(len(close), asked),
            set(phrases.tolist()),
        )  # fmt: skip

    def _tenths(self, known: I64, but: I64) -> tuple[I64, I64]:
        i, j = self.prints.candidates(known)
        apart = ~(np.isin(i, but) | np.isin(j, but))
        i, j = i[apart], j[apart]
        same = related(i, j, self._read)
        return i[same], j[same]

    def _unchained(self, near: tuple[I64, I64], tenth: tuple[I64, I64]) -> tuple[I64, I64]:
        """The second links without those of groups that both kinds make too large."""
        group = self._grouped(near, tenth)
        size = np.bincount(group, minlength=len(group))[group]
        kept = size[tenth[0]] <= max(FEW, CHAIN * len(group))
        return tenth[0][kept], tenth[1][kept]

    def _grouped(self, *links: tuple[I64, I64]) -> I64:
        """[rows]: the first row of each one's group. Rows of a given held-out file draw no other to their side."""
        free = np.zeros(len(self.rows), bool)
        free[self.numbers["train"]] = True
        i, j = (np.concatenate(side) for side in zip(*links, strict=True))
        both = free[i] & free[j]
        return _grouped(len(free), (i[both], j[both]))


def _grouped(rows: int, *links: tuple[I64, I64]) -> I64:
    i, j = (np.concatenate(side).astype(np.int32) for side in zip(*links, strict=True))
    return groups(Pairs(i, j, np.ones(len(i), np.float32)), rows).astype(np.int64)


def _sources(rows: PreparedRows) -> tuple[I64, I64]:
    """Each record, and the first one that was made from the same row of the same file."""
    first: dict[tuple[str, int], int] = {}
    out = [first.setdefault(place, at) for at, place in enumerate(zip(rows.files, rows.lines, strict=True))]
    return np.asarray(out, np.int64), np.arange(len(out))
