"""Training, validation and test rows, chosen by a hash of seed and content.

A row's place in the order of choice never depends on its neighbours, so rows that are added later move few of the old
ones. Rows of one group (near repetitions of each other) always go to the same side; a group has the place of one of its
rows, so a large one is chosen no sooner than a small one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, cast

Split = Literal["train", "validation", "test"]
SIDES: tuple[Split, ...] = ("train", "validation", "test")
SMALL = 10
"""Strata with fewer rows than this are held out from together."""


def rank(record_id: str, seed: int) -> str:
    """The place of a row in the order of choice, as 64 hex digits."""
    return hashlib.sha256(f"{seed}:{record_id}".encode()).hexdigest()


def sides(
    ids: Sequence[str],
    strata: Sequence[str],
    *,
    validation: float,
    test: float = 0,
    seed: int = 42,
    groups: Sequence[int] | None = None,
    fixed: Sequence[Split | None] | None = None,
    before: Sequence[Split | None] | None = None,
) -> list[Split]:
    """The side of each row. `strata` names what is held out from in proportion (a file, or a file and a label).

    `validation` and `test` below 1 are shares, taken from every stratum with ten rows or more and from all the smaller
    ones together; 1 and above are numbers of rows, shared out in proportion. Rows of equal id or equal `groups` number
    stay together. A row that is `fixed` stays on its side, and so does all of its group. Shares leave something
    to train on; a number of rows may not: the caller checks. So does a row whose side is told `before`, because it had
    it in a split of fewer rows; but those count in what is wanted.
    """
    members = _units(ids, groups)
    chosen: dict[int, Split] = {}
    again: dict[int, Split] = {}
    free: dict[str, list[int]] = {}
    for unit, rows in members.items():
        bound = [f for r in rows if fixed and (f := fixed[r])]
        if bound:
            chosen[unit] = max(bound, key=SIDES.index)
            continue
        free.setdefault(strata[rows[0]], []).append(unit)
        if had := [b for r in rows if before and (b := before[r])]:
            again[unit] = max(had, key=SIDES.index)
    free = _joined(free, members)
    order = {u: rank(min(ids[r] for r in rows), seed) for u, rows in members.items() if u not in chosen}
    sizes = {name: sum(len(members[u]) for u in units) for name, units in free.items()}
    chosen |= again
    tests, holds = _quota(sizes, test), _quota(sizes, validation)
    if max(test, validation) < 1:
        holds = {name: max(min(n, sizes[name] - tests[name] - 1), 0) for name, n in holds.items()}
    for side, quota in (("test", tests), ("validation", holds)):
        for name, units in free.items():
            waiting = sorted((u for u in units if u not in chosen), key=lambda u: order[u])
            left = max(quota[name] - sum(len(members[u]) for u in units if again.get(u) == side), 0)
            chosen |= dict.fromkeys(_taken([(u, len(members[u])) for u in waiting], left), cast(Split, side))
    out: list[Split] = ["train"] * len(ids)
    for unit, rows in members.items():
        for r in rows:
            out[r] = (fixed[r] if fixed else None) or chosen.get(unit, "train")
    return out


def _units(ids: Sequence[str], groups: Sequence[int] | None) -> dict[int, list[int]]:
    """Unit -> its rows, in order. A unit is a group, or the rows of one id."""
    out: dict[int, list[int]] = {}
    first: dict[str, int] = {}
    for r, identity in enumerate(ids):
        unit = int(groups[r]) if groups is not None else r
        out.setdefault(first.setdefault(identity, unit), []).append(r)
    return out


def _joined(free: dict[str, list[int]], members: dict[int, list[int]]) -> dict[str, list[int]]:
    """Strata of fewer than `SMALL` rows under one name."""
    out: dict[str, list[int]] = {}
    for name, units in free.items():
        rows = sum(len(members[u]) for u in units)
        out.setdefault(name if rows >= SMALL else "", []).extend(units)
    return out


def _taken(units: list[tuple[int, int]], rows: int) -> list[int]:
    """Units (number, size) that make up `rows` rows together, the first ones first; one that is too large is passed by.

    >>> _taken([(7, 1), (8, 5), (9, 2)], 3)
    [7, 9]
    """
    out, left = [], rows
    for unit, size in units:
        if size <= left:
            out.append(unit)
            left -= size
    if rows and not out and len(units) > 1:  # all are groups: a little more than asked for is better than nothing
        unit, size = min(units, key=lambda pair: pair[1])
        out = [unit] if size <= 2 * rows else []
    return out


def _quota(sizes: dict[str, int], wanted: float) -> dict[str, int]:
    return _shares(sizes, wanted) if wanted < 1 else _counts(sizes, int(wanted))


def _shares(sizes: dict[str, int], share: float) -> dict[str, int]:
    """Rows to hold out of each, rounded half up; of ten or more at least one, and never all."""
    out = {}
    for name, n in sizes.items():
        take = int(n * share + 0.5)
        out[name] = min(max(take, 1), n - 1) if share and n >= SMALL else min(take, max(n - 1, 0))
    return out


def _counts(sizes: dict[str, int], total: int) -> dict[str, int]:
    """`total` shared out in proportion to the sizes, largest remainders first."""
    n = sum(sizes.values())
    exact = {name: min(total, n) * size / n for name, size in sizes.items()} if n else {}
    out = {name: int(share) for name, share in exact.items()}
    rest = min(total, n) - sum(out.values())
    for name in sorted(exact, key=lambda k: (out[k] - exact[k], k))[:rest]:
        out[name] += 1
    return out
