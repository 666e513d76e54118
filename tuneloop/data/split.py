"""Training and held-out dialogues, chosen by a hash of seed and content.

A dialogue's place in the order of choice never depends on its neighbours, so rows that are added later move few of the
old ones. It knows nothing of repeats: they are applied afterwards, to training rows alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from tuneloop.errors import DataError
from tuneloop.records import Record

SMALL = 10
"""Files with fewer dialogues than this are held out from together."""


def rank(record_id: str, seed: int) -> str:
    """The place of a dialogue in the order of choice, as 64 hex digits."""
    return hashlib.sha256(f"{seed}:{record_id}".encode()).hexdigest()


def split(records: Sequence[Record], validation: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(training, held-out), each in the old order.

    `validation` below 1 is a share, taken from every file with ten dialogues or more and from all the smaller ones
    together; 1 and above is a number of dialogues, shared out in proportion. Equal dialogues stay on one side.
    Raises TL-DATA-NOTHING-LEFT if nothing would be left to train on.
    """
    ids = [r.id for r in records]
    strata = _strata(records, ids)
    sizes = {name: len(members) for name, members in strata.items()}
    quota = _shares(sizes, validation) if validation < 1 else _counts(sizes, int(validation))
    held: set[str] = set()
    for name, members in strata.items():
        held.update(sorted(members, key=lambda i: rank(i, seed))[: quota[name]])
    train = [r for r, i in zip(records, ids, strict=True) if i not in held]
    if not train:
        raise DataError("TL-DATA-NOTHING-LEFT", rows=len(records), reasons=f"prepare.validation: {validation:g}")
    return train, [r for r, i in zip(records, ids, strict=True) if i in held]


def _strata(records: Sequence[Record], ids: Sequence[str]) -> dict[str, list[str]]:
    """File -> ids of its dialogues, each id once and under its first file; small files under one name."""
    files: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for record, identity in zip(records, ids, strict=True):
        first.setdefault(identity, record.file)
    for identity, file in first.items():
        files.setdefault(file, []).append(identity)
    out: dict[str, list[str]] = {}
    for file, members in files.items():
        out.setdefault(file if len(members) >= SMALL else "", []).extend(members)
    return out


def _shares(sizes: dict[str, int], share: float) -> dict[str, int]:
    """Dialogues to hold out of each, rounded half up; of ten or more at least one, and never all."""
    out = {}
    for name, n in sizes.items():
        take = int(n * share + 0.5)
        out[name] = min(max(take, 1), n - 1) if share and n >= SMALL else min(take, max(n - 1, 0))
    return out


def _counts(sizes: dict[str, int], total: int) -> dict[str, int]:
    """`total` shared out in proportion to the sizes, largest remainders first."""
    n = sum(sizes.values())
    exact = {name: min(total, n) * size / n for name, size in sizes.items()} if n else {}
    out = {name: int(value) for name, value in exact.items()}
    rest = min(total, n) - sum(out.values())
    for name in sorted(exact, key=lambda k: (out[k] - exact[k], k))[:rest]:
        out[name] += 1
    return out
