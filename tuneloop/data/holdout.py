"""What concerns all rows together: which of them go, and on which side the others stand.

Three promises. A row of a file that is given as test or validation stays there, and nothing is added to it. No row is
trained on that is held out, nor one that nearly repeats it. Where both cannot be had at once, because nearly all rows
are alike, each held-out row that training nearly sees is marked in the ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuneloop.data.dedupe import Compared, dialogue_text, near_repeats
from tuneloop.data.kept import Kept, Some
from tuneloop.data.ledger import Action
from tuneloop.data.near import Pairs, TextOf, contaminated, groups
from tuneloop.data.split import SIDES, Side, rank, sides
from tuneloop.records import LedgerEntry
from tuneloop.sections import PreparePart


@dataclass(frozen=True)
class Choice:
    """The side of each row, "" for one that goes; and what the ledger says about them.

    `alike` of the rows that stay nearly repeat another one of those; None where they were not compared.
    """

    sides: list[str]
    entries: list[LedgerEntry]
    alike: int | None


def choose(rows: Kept, part: PreparePart, seed: int) -> Choice:
    """What becomes of each row. All of them may be held out; the caller checks."""
    entries: list[LedgerEntry] = []
    gone: set[int] = set()
    group: list[int] | None = None
    if part.dedupe == "near" or part.validation or part.test or {"validation", "test"} & set(rows.given):
        looked = _Looked(rows)
        entries += looked.contaminated(part.near, gone)
        pairs = {side: looked.pairs(side, part.near) for side in SIDES}
        if part.dedupe == "near":
            for side in SIDES:
                entries += looked.repeated(side, pairs[side], part.near, gone)
        group = looked.groups(pairs["train"])
    left = [at for at in range(len(rows)) if at not in gone]
    chosen = _split(rows, left, part, seed, group)
    if group is not None and 2 * _held(chosen) < _held(apart := _split(rows, left, part, seed, None)):
        # Rows so alike that nearly all are one group: better a held-out set with near repetitions than none.
        chosen = apart
        entries += _torn(rows, left, group, apart)
    out = [""] * len(rows)
    for at, side in zip(left, chosen, strict=True):
        out[at] = side
    return Choice(out, entries, None if group is None else len(left) - len({group[at] for at in left}))


def _split(rows: Kept, left: Sequence[int], part: PreparePart, seed: int, group: Sequence[int] | None) -> list[Side]:
    ids = [rows.ids[at] for at in left]
    strata = [f"{rows.files[at]}\0{rows.labels[at] if part.stratify else ''}" for at in left]
    of = [group[at] for at in left] if group else None
    fixed = [rows.given[at] for at in left]
    chosen = sides(ids, strata, validation=part.validation, test=part.test, seed=seed, groups=of, fixed=fixed)
    return all_learnt(chosen, ids, [rows.labels[at] for at in left], strata, seed=seed, groups=of, fixed=fixed)


def all_learnt(
    chosen: list[Side], ids: Sequence[str], labels: Sequence[str], strata: Sequence[str], *, seed: int,
    groups: Sequence[int] | None = None, fixed: Sequence[Side | None] | None = None,
) -> list[Side]:  # fmt: skip
    """The split `chosen`, changed so that training has each label ("" is none) that it can have.

    The last drawn group of a label that is held out whole goes back to training, and the next ones in the order of
    choice are held out for it, of its stratum if there are any. A split that has all labels stays as it is.
    """
    learnt = {label for label, side in zip(labels, chosen, strict=True) if side == "train"} | {""}
    if learnt.issuperset(labels):
        return chosen
    free = _in_order(ids, seed, groups, fixed)
    kept: dict[str, int] = {}  # label -> first row of its unit that is trained on if any is, and drawn last
    for one in sorted(free, key=lambda one: SIDES.index(chosen[one[0]]), reverse=True):
        kept |= {labels[r]: one[0] for r in one if labels[r]}
    back = {row for label, row in kept.items() if label not in learnt}
    out = list(chosen)
    lacking: dict[Side, Counter[str]] = {"test": Counter(), "validation": Counter()}

    def put(one: list[int], side: Side) -> None:
        if out[one[0]] != "train":
            lacking[out[one[0]]][strata[one[0]]] += len(one)
        for r in one:
            out[r] = side

    for one in free:
        if one[0] in back:
            put(one, "train")
    spared = set(kept.values())
    others = [one for one in free if one[0] not in spared]
    later: dict[Side, tuple[Side, ...]] = {"test": ("validation", "train"), "validation": ("train",)}
    for side, after in later.items():  # what validation gives to the test set, it takes from training
        lack = lacking[side]
        for near in (True, False):  # from the same strata; then from any
            for one in others:
                place = strata[one[0]] if near else ""
                if out[one[0]] in after and len(one) <= lack[place]:
                    lack[place] -= len(one)
                    put(one, side)
            lack = Counter({"": lack.total()})
    return out


def _in_order(
    ids: Sequence[str], seed: int, groups: Sequence[int] | None, fixed: Sequence[Side | None] | None
) -> list[list[int]]:
    """The rows that `sides` keeps together and may choose from, in its order of choice."""
    units: dict[int, list[int]] = {}
    first: dict[str, int] = {}
    for r, identity in enumerate(ids):
        units.setdefault(first.setdefault(identity, groups[r] if groups else r), []).append(r)
    free = [one for one in units.values() if not any(fixed and fixed[r] for r in one)]
    return sorted(free, key=lambda one: rank(min(ids[r] for r in one), seed))


def _held(chosen: Sequence[Side]) -> int:
    return sum(side != "train" for side in chosen)


def _torn(rows: Kept, left: list[int], group: Sequence[int], chosen: list[Side]) -> Iterator[LedgerEntry]:
    """Held-out rows that training nearly sees: they could not be kept on one side."""
    learnt = {group[at]: at for at, side in zip(left, chosen, strict=True) if side == "train"}
    for at, side in zip(left, chosen, strict=True):
        if side != "train" and (twin := learnt.get(group[at])) is not None:
            yield _entry(rows, "marked", "split", "also in training", at, rows.place(twin))


def _entry(rows: Kept, action: Action, step: str, reason: str, at: int, detail: str) -> LedgerEntry:
    return LedgerEntry(action, step, reason, rows.files[at], rows.lines[at], rows.ids[at], detail)


class _Looked:
    """The rows of each side by their numbers, and their sketches; a row whose side is not given counts as "train"."""

    def __init__(self, rows: Kept) -> None:
        self.rows = rows
        self.numbers: dict[Side, list[int]] = {side: [] for side in SIDES}
        for at, given in enumerate(rows.given):
            self.numbers[given or "train"].append(at)
        self.some = {side: Some(rows, numbers) for side, numbers in self.numbers.items()}
        self.compared = {side: Compared() for side in SIDES}
        at = 0
        for batch in rows.batches():
            for side in SIDES:
                own = [r for r, given in zip(batch, rows.given[at : at + len(batch)], strict=True)
                       if (given or "train") == side]  # fmt: skip
                self.compared[side].add(own)
            at += len(batch)

    def contaminated(self, threshold: float, gone: set[int]) -> Iterator[LedgerEntry]:
        """Rows that nearly repeat one of a file given as test go, from validation too; then those of validation."""
        held: tuple[tuple[Side, Side], ...] = (("test", "validation"), ("test", "train"), ("validation", "train"))
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
                    yield _entry(self.rows, "dropped", "dedupe", "held out elsewhere", at, detail)

    def _texts(self, side: Side) -> TextOf:
        some = self.some[side]
        return lambda numbers: [dialogue_text(some[n]) for n in numbers.tolist()]

    def pairs(self, side: Side, threshold: float) -> Pairs:
        return self.compared[side].pairs(self.some[side], threshold)

    def repeated(self, side: Side, pairs: Pairs, threshold: float, gone: set[int]) -> list[LedgerEntry]:
        """The near repetitions inside a side go, all but the first of each."""
        numbers = self.numbers[side]
        there = np.asarray([at not in gone for at in numbers], bool)
        both = there[pairs.i] & there[pairs.j]
        pairs = Pairs(pairs.i[both], pairs.j[both], pairs.jaccard[both])
        first, entries = near_repeats(self.some[side], pairs, threshold)
        gone.update(numbers[n] for n in np.flatnonzero(first != np.arange(len(first))).tolist())
        return entries

    def groups(self, pairs: Pairs) -> list[int]:
        """The group of each row; a row of a given held-out file has one of its own, and draws no other to its side."""
        out: NDArray[np.int64] = np.arange(len(self.rows))
        numbers = np.asarray(self.numbers["train"], np.int64)
        if len(numbers):
            out[numbers] = numbers[groups(pairs, len(numbers))]
        return list(map(int, out))
