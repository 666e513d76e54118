"""Raw files -> a dataset version: rows in parts, then what concerns all rows together, then the folder.

Nothing here knows a tokenizer: `encode` turns records into samples, `key` names the tokenizer. What a version was made
from is remembered beside it, so that an unchanged `prepare` finds its version without doing the work again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from tuneloop.data import formats, parts
from tuneloop.data.clean import steps
from tuneloop.data.dataset import Dataset, open_dataset
from tuneloop.data.dedupe import Compared, near_repeats
from tuneloop.data.excerpts import View
from tuneloop.data.fit import Encode
from tuneloop.data.kept import Kept
from tuneloop.data.ledger import entries, words
from tuneloop.data.near import groups
from tuneloop.data.parts import Found, Part, Sources
from tuneloop.data.sniff import shown
from tuneloop.data.split import Side, sides
from tuneloop.data.stamps import Stamps, digest
from tuneloop.data.version import write
from tuneloop.disk import require_room
from tuneloop.environment import environment
from tuneloop.errors import DataError, MachineError
from tuneloop.records import LedgerEntry
from tuneloop.sections import Recipe

Say = Callable[[int], None]
_TOGETHER = ({"chat", "text"}, {"label"}, {"preference"}, {"judged", "chat"})
"""Kinds that may stand in one version."""


def _quiet(rows: int) -> None:
    """Says nothing."""


def build(
    recipe: Recipe, workspace: Path, encode: Encode, key: str, say: Say = _quiet, view: View | None = None
) -> Dataset:
    """Read, clean, dedupe, fit and split the recipe's files; write the version, or find it if it is there.

    `view` shows samples on the card as the model sees them.

    Raises DataError where a file cannot be used or nothing is left, MachineError where the disk has no room or refuses.
    After a crash the finished parts of the work are taken as they are.
    """
    if not recipe.data:
        raise DataError("TL-DATA-NONE", where="data")
    home = workspace / "datasets" / recipe.name
    found, left_out = _find(recipe)
    stamps = Stamps(home / "stamps.json")
    try:
        digests = {s.label: one for _, group in found for s, one in _digests(stamps, group)}
    except OSError as error:
        raise DataError("TL-DATA-UNREADABLE", where=shown(error.filename), error=error.strerror) from error
    made_from = _cache_key(recipe, found, digests, key)
    try:
        if known := _remembered(home, made_from, stamps):
            return known
        with _alone(home, made_from):  # another process may be at it: then its work is ours
            dataset = _remembered(home, made_from, stamps)
            if dataset is None:
                work = home / f".work-{made_from[:12]}"
                dataset = _build(home, work, recipe, Sources(found, digests, left_out), encode, key, say, view)
                _remember(home, made_from, dataset.hash)
                shutil.rmtree(work, ignore_errors=True)
        stamps.keep()
        return dataset
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise MachineError("TL-MACHINE-DISK", where=shown(home), needed="?", free="0") from error
        raise MachineError("TL-MACHINE-FOLDER", where=shown(home), error=error.strerror or str(error)) from error


@contextmanager
def _alone(home: Path, made_from: str) -> Iterator[None]:
    """One process of this user at a time makes this version."""
    folder = environment().home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(f"{home.resolve()}/{made_from}".encode()).hexdigest()[:16]
    with FileLock(folder / f"{name}.lock"):
        yield


def _build(
    home: Path, work: Path, recipe: Recipe, sources: Sources, encode: Encode, key: str, say: Say, view: View | None
) -> Dataset:
    part = recipe.prepare
    require_room(home, 4 * sum(p.stat().st_size for p in {s.path for _, group in sources.found for s in group}))
    try:
        made = parts.make(
            work, parts.raw_rows(sources.found, recipe.seed), part, steps(part.clean, part.turns), encode, say
        )
        rows = Kept(made)
        if not len(rows):
            raise _nothing(made)
        _one_kind(rows)
        out, entries, alike = _chosen(rows, recipe, sources.fixed())
        return write(home, recipe, sources, rows, out, entries, key, alike, view)
    except DataError:  # the data's fault: there is nothing to go on from
        shutil.rmtree(work, ignore_errors=True)
        for folder in (home, home.parent):
            with suppress(OSError):
                folder.rmdir()
        raise


def _find(recipe: Recipe) -> tuple[Found, list[tuple[str, str]]]:
    """Every file of the recipe with what it is, and what was left out; two of one name get labels that differ."""
    listed = [(file, formats.paths(file)) for file in recipe.data]
    names = formats.labels(path for _, paths in listed for path in paths)
    seen = [(file, formats.survey(file, names)) for file, _ in listed]
    return [(file, one.sources) for file, one in seen], [pair for _, one in seen for pair in one.left_out]


def _digests(stamps: Stamps, group: list[formats.Source]) -> Iterator[tuple[formats.Source, str]]:
    known = stamps.digests(dict.fromkeys(s.path for s in group))  # members of one archive share it
    for source in group:
        yield source, known[source.path]


def _nothing(made: list[Part]) -> DataError:
    """The three commonest reasons why no row is left, each with an example of its details."""
    counts, details = Counter[str](), dict[str, str]()
    for part in made:
        counts.update({c["reason"]: c["dropped"] for c in part.meta["counts"] if c["dropped"]})
        for e in entries(part.ledger):
            details.setdefault(e.reason, e.detail)
    reasons = "; ".join(
        f"{words().get(reason, reason)}: {n}" + (f" ({details[reason]})" if details[reason] else "")
        for reason, n in counts.most_common(3)
    )
    return DataError("TL-DATA-NOTHING-LEFT", rows=sum(sum(p.meta["rows"].values()) for p in made), reasons=reasons)


def _one_kind(rows: Kept) -> None:
    """Raise TL-DATA-MIXED where the rows cannot be trained together."""
    kinds = set(rows.kinds)
    if not any(kinds <= together for together in _TOGETHER):
        first = {kind: rows.files[rows.kinds.index(kind)] for kind in sorted(kinds)}
        raise DataError("TL-DATA-MIXED", where="data", files=", ".join(f"{f}: {k}" for k, f in first.items()))


def _chosen(rows: Kept, recipe: Recipe, fixed: dict[str, Any]) -> tuple[list[str], list[LedgerEntry], int | None]:
    """The side of each row, "" for one that goes; an entry for each of those; and how many of the rows that stay
    nearly repeat another one, None where they were not compared."""
    part = recipe.prepare
    near = part.dedupe == "near"
    held_out = part.validation or part.test or {"validation", "test"} & set(fixed.values())
    entries: list[LedgerEntry] = []
    gone: set[int] = set()
    group: NDArray[np.int32] | None = None
    given = [fixed.get(file) for file in rows.files]
    if near or held_out:
        compared = Compared()
        for batch in rows.batches():
            compared.add(batch)
        pairs = compared.pairs(rows, part.near)
        group = groups(pairs, len(rows))
        entries += _contaminated(rows, group, given, gone)
        if near:
            first, told = near_repeats(rows, pairs, part.near)
            already = {(rows.files[at], rows.lines[at]) for at in gone}
            entries += [e for e in told if (e.file, e.line) not in already]
            gone |= set(np.flatnonzero(first != np.arange(len(rows))).tolist())
    left = [at for at in range(len(rows)) if at not in gone]
    strata = [f"{rows.files[at]}\0{rows.labels[at] if part.stratify else ''}" for at in left]
    split = partial(
        sides, [rows.ids[at] for at in left], strata, validation=part.validation, test=part.test, seed=recipe.seed,
        fixed=[given[at] for at in left],
    )  # fmt: skip
    chosen = split(groups=group[left].tolist() if group is not None else None)
    if group is not None and 2 * _held(chosen) < _held(apart := split()):
        # Rows so alike that nearly all are one group: better a held-out set with near repetitions than none.
        chosen = apart
        entries += _torn(rows, left, group, apart)
    if "train" not in chosen:
        raise DataError("TL-DATA-NOTHING-LEFT", rows=len(rows), reasons=f"prepare.validation: {part.validation:g}")
    out = [""] * len(rows)
    for at, side in zip(left, chosen, strict=True):
        out[at] = side
    alike = None if group is None else len(left) - len(np.unique(group[left]))
    return out, entries, alike


def _held(chosen: list[Side]) -> int:
    return sum(side != "train" for side in chosen)


def _torn(rows: Kept, left: list[int], group: NDArray[np.int32], chosen: list[Side]) -> Iterator[LedgerEntry]:
    """Held-out rows that training nearly sees: they could not be kept on one side."""
    learnt = {int(group[at]): at for at, side in zip(left, chosen, strict=True) if side == "train"}
    for at, side in zip(left, chosen, strict=True):
        if side != "train" and (twin := learnt.get(int(group[at]))) is not None:
            place = (rows.files[at], rows.lines[at], rows.ids[at], rows.place(twin))
            yield LedgerEntry("marked", "split", "also in training", *place)


def _contaminated(rows: Kept, group: NDArray[np.int32], given: list[Any], gone: set[int]) -> Iterator[LedgerEntry]:
    """Rows that nearly repeat one of a file given as test (or validation) go: they must not be trained on."""
    order = {None: 0, "train": 0, "validation": 1, "test": 2}
    most: dict[int, int] = {}
    for at, side in enumerate(given):
        if side in ("validation", "test"):
            held = most.get(int(group[at]))
            if held is None or order[given[held]] < order[side]:
                most[int(group[at])] = at
    for at in range(len(rows)):
        held = most.get(int(group[at]))
        if held is not None and order[given[at]] < order[given[held]]:
            gone.add(at)
            where = (rows.files[at], rows.lines[at], rows.ids[at], rows.place(held))
            yield LedgerEntry("dropped", "dedupe", "held out elsewhere", *where)


def _cache_key(recipe: Recipe, found: Found, digests: dict[str, str], key: str) -> str:
    """Digest of all that a version depends on: file contents, settings, tokenizer, this room's code."""
    here = Path(__file__).parent
    code = sorted([*here.glob("*.py"), *here.with_name("safety").glob("**/*.*"), here.with_name("records.py")])
    parts = {
        "files": [
            [s.label, digests[s.label], f.model_dump(mode="json", exclude={"path"})]
            for f, group in found
            for s in group
        ],
        "prepare": recipe.prepare.model_dump(mode="json"),
        "lexicons": [digest(Path(p)) for p in recipe.prepare.clean.lexicon_files if Path(p).is_file()],
        "seed": recipe.seed,
        "tokenizer": key,
        "code": [digest(path) for path in code if "__pycache__" not in path.parts],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _known(home: Path) -> dict[str, str]:
    try:
        value = json.loads((home / "sources.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _remembered(home: Path, made_from: str, stamps: Stamps) -> Dataset | None:
    """The version that was made from the same, if it is still whole."""
    name = _known(home).get(made_from, "")
    if not isinstance(name, str) or len(name) != 12 or not name.isalnum():
        return None
    try:
        return open_dataset(home / name, lambda path: stamps.digests([path])[path])
    except DataError:
        return None


def _remember(home: Path, made_from: str, name: str) -> None:
    draft = home / f".sources.{os.getpid()}"
    text = json.dumps(_known(home) | {made_from: name}, indent=1) + "\n"
    with suppress(FileNotFoundError):
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, home / "sources.json")
