"""What concerns all rows together: which of them go, and on which side the others stand.

Three promises. A row of a file that is given as test or validation stays there, and nothing is added to it. No row is
trained on that is held out, nor a piece of it, nor one that holds it, nearly repeats it or asks the same
(`relations.py`). Where hardly a row could be held out then, because nearly all are alike, pieces and dialogues that
hold each other stay together all the same, and each other held-out row that training nearly sees is marked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tuneloop.base.records import LedgerEntry
from tuneloop.data.dedupe.relations import Families, Relations, ledger_entry
from tuneloop.data.dedupe.shingles import I64
from tuneloop.data.version.rows import PreparedRows
from tuneloop.data.version.split import SIDES, Split, rank, sides
from tuneloop.recipe.schema import PreparePart


@dataclass(frozen=True)
class SplitChoice:
    """The side of each row, "" for one that goes; and what the ledger says about them.

    `alike` of the rows that stay nearly repeat another one of those; None where they were not compared.
    """

    sides: list[str]
    entries: list[LedgerEntry]
    alike: int | None


def choose(rows: PreparedRows, part: PreparePart, seed: int, before: Mapping[str, Split] | None = None) -> SplitChoice:
    """What becomes of each row. All of them may be held out; the caller checks.

    `before` are the rows, by id, that an earlier version held out: they are held out again, with all that belongs to
    them.
    """
    entries: list[LedgerEntry] = []
    gone: set[int] = set()
    split = bool(part.validation or part.test or {"validation", "test"} & set(rows.given))
    if not split and part.dedupe != "near":
        return SplitChoice([side or "train" for side in rows.given], entries, None)
    relations = Relations(rows, split=split)
    entries += relations.contaminated(part.near, gone)
    pairs = {side: relations.pairs(side, part.near) for side in SIDES}
    if part.dedupe == "near":
        for side in SIDES:
            entries += relations.repeated(side, pairs[side], part.near, gone)
    families = relations.families(pairs["train"])
    left = [at for at in range(len(rows)) if at not in gone]
    *strict, certain = families.levels
    chosen = apart = _split(rows, left, part, seed, certain, families.phrases, before or {})
    half = min(_wanted(rows, left, part, families.phrases) / 2, _held(apart))
    for group in strict:
        tried = _split(rows, left, part, seed, group, families.phrases, before or {})
        if half <= _held(tried) and (not before or _held(tried) <= 2 * _held(apart)):
            chosen = tried
            break  # else rows are so alike that nearly all are one group: better near repetitions held out than none
    entries += _torn(rows, left, families, chosen)
    entries += [
        ledger_entry(rows, "marked", "split", "held by many rows", at, "")
        for at in left
        if split and at in families.phrases and not rows.given[at]
    ]
    out = [""] * len(rows)
    for at, side in zip(left, chosen, strict=True):
        out[at] = side
    return SplitChoice(out, entries, len(left) - len({families.alike[at] for at in left}))


def _split(
    rows: PreparedRows,
    left: Sequence[int],
    part: PreparePart,
    seed: int,
    group: I64,
    phrases: set[int],
    before: Mapping[str, Split],
) -> list[Split]:
    ids = [rows.ids[at] for at in left]
    strata = [f"{rows.files[at]}\0{rows.labels[at] if part.stratify else ''}" for at in left]
    of = group[left].tolist()
    fixed = [rows.given[at] or ("train" if at in phrases else None) for at in left]
    chosen = sides(
        ids,
        strata,
        validation=part.validation,
        test=part.test,
        seed=seed,
        groups=of,
        fixed=fixed,
        before=[before.get(one) for one in ids] if before else None,
    )
    return all_learnt(chosen, ids, [rows.labels[at] for at in left], strata, seed=seed, groups=of, fixed=fixed)


def all_learnt(
    chosen: list[Split],
    ids: Sequence[str],
    labels: Sequence[str],
    strata: Sequence[str],
    *,
    seed: int,
    groups: Sequence[int] | None = None,
    fixed: Sequence[Split | None] | None = None,
) -> list[Split]:
    """The split `chosen`, changed so that training has each label ("" is none) that it can have.

    The last drawn group of a label that is held out whole goes back to training, and the next ones in the order of
    choice are held out for it, of its stratum if there are any. A split that has all labels stays as it is.
    """
    learnt = {label for label, side in zip(labels, chosen, strict=True) if side == "train"} | {""}
    if learnt.issuperset(labels):
        return chosen
    free = _in_order(ids, seed, groups, fixed)
    last_drawn: dict[str, int] = {}  # label -> first row of its unit that is trained on if any is, and drawn last
    for one in sorted(free, key=lambda one: SIDES.index(chosen[one[0]]), reverse=True):
        last_drawn |= {labels[r]: one[0] for r in one if labels[r]}
    back = {row for label, row in last_drawn.items() if label not in learnt}
    out = list(chosen)
    lacking: dict[Split, Counter[str]] = {"test": Counter(), "validation": Counter()}

    def put(one: list[int], side: Split) -> None:
        if out[one[0]] != "train":
            lacking[out[one[0]]][strata[one[0]]] += len(one)
        for r in one:
            out[r] = side

    for one in free:
        if one[0] in back:
            put(one, "train")
    spared = set(last_drawn.values())
    others = [one for one in free if one[0] not in spared]
    later: dict[Split, tuple[Split, ...]] = {"test": ("validation", "train"), "validation": ("train",)}
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
    ids: Sequence[str], seed: int, groups: Sequence[int] | None, fixed: Sequence[Split | None] | None
) -> list[list[int]]:
    """The rows that `sides` keeps together and may choose from, in its order of choice."""
    units: dict[int, list[int]] = {}
    first: dict[str, int] = {}
    for r, identity in enumerate(ids):
        units.setdefault(first.setdefault(identity, groups[r] if groups else r), []).append(r)
    free = [one for one in units.values() if not any(fixed and fixed[r] for r in one)]
    return sorted(free, key=lambda one: rank(min(ids[r] for r in one), seed))


def _held(chosen: Sequence[Split]) -> int:
    return sum(side != "train" for side in chosen)


def _wanted(rows: PreparedRows, left: Sequence[int], part: PreparePart, phrases: set[int]) -> float:
    """Rows that should be held out of those whose side is free, and the rows of given held-out files."""
    free = sum(not rows.given[at] and at not in phrases for at in left)
    shares = (int(x * free + 0.5) if x < 1 else min(x, free) for x in (part.validation, part.test))
    return sum(shares) + sum(rows.given[at] in ("validation", "test") for at in left)


def _torn(rows: PreparedRows, left: list[int], families: Families, chosen: Sequence[Split]) -> Iterator[LedgerEntry]:
    """Held-out rows that training nearly sees, or whose question it sees: they could not be kept on one side."""
    marked: set[int] = set()
    for group, reason in ((families.close, "also in training"), (families.same_question, "question also in training")):
        learnt = {int(group[at]): at for at, side in zip(left, chosen, strict=True) if side == "train"}
        for at, side in zip(left, chosen, strict=True):
            twin = learnt.get(int(group[at]))
            if side != "train" and twin is not None and at not in marked:
                marked.add(at)
                yield ledger_entry(rows, "marked", "split", reason, at, rows.place(twin))
