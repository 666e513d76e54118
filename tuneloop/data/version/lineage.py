"""Where rows came from, and what differs between two versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tuneloop.base.errors import DataError
from tuneloop.base.files import printable
from tuneloop.base.records import LedgerEntry, Record
from tuneloop.data import arrow
from tuneloop.data.ledger import entries, words
from tuneloop.data.version.dataset import Dataset, open_dataset
from tuneloop.data.version.find import every_version
from tuneloop.data.version.split import SIDES, Split


@dataclass(frozen=True)
class Trace:
    """One row: its side, its source file, its ancestors (nearest first) and what the ledger has of it."""

    record: Record
    side: str
    source: dict[str, Any]
    parents: tuple[Record, ...]
    ledger: tuple[LedgerEntry, ...]


def trace(dataset: Dataset, identity: str) -> Trace:
    """The story of the row whose id begins with `identity`: its id now, or one that the ledger knows it by.

    Raises TL-DATA-NO-ROW where none or several do, TL-DATA-ROW-GONE where the ledger says that it was dropped.
    """
    matches = {record.id: (record, side) for record, side in _rows(dataset, lambda one: one.startswith(identity))}
    if not matches:
        now = _renamed(dataset, identity)
        matches = {record.id: (record, side) for record, side in _rows(dataset, now.__contains__)}
    if len(matches) != 1:
        raise DataError("TL-DATA-NO-ROW", where=printable(identity), n=len(matches))
    record, side = next(iter(matches.values()))
    source: dict[str, Any] = next((s for s in dataset.manifest["sources"] if s["file"] == record.file), {})
    parents: list[Record] = []
    seen, wanted = {record.id}, record.parent
    while wanted and wanted not in seen:
        parent = next((r for r, _ in _rows(dataset, wanted.__eq__)), None)
        if parent is None:
            break
        seen.add(wanted)
        parents.append(parent)
        wanted = parent.parent
    events = [e for e in entries(dataset.path / "ledger.jsonl") if (e.file, e.line) == (record.file, record.line)]
    return Trace(record, side, source, tuple(parents), tuple(events))


def newest(workspace: Path, identity: str) -> Trace:
    """The story of a row in the newest of a workspace's versions that has it. Raises TL-DATA-NO-ROW where none
    has it, TL-DATA-ROW-GONE where the newest that knows it has dropped it."""
    for path in reversed(every_version(workspace)):
        try:
            return trace(open_dataset(path), identity)
        except DataError as error:
            if error.code != "TL-DATA-NO-ROW" or error.facts["n"]:
                raise
    raise DataError("TL-DATA-NO-ROW", where=printable(identity), n=0)


def _renamed(dataset: Dataset, identity: str) -> set[str]:
    """The ids of the rows that lie where the ledger saw the row of an older id."""
    events = [e for e in entries(dataset.path / "ledger.jsonl") if e.id.startswith(identity)]
    places = {(e.file, e.line) for e in events}
    now = {i for i, (_, file, line) in _index(dataset).items() if (file, line) in places}
    if events and not now:
        last = next((e for e in events if e.action == "dropped"), events[-1])
        reason = words().get(last.reason, last.reason)
        raise DataError("TL-DATA-ROW-GONE", where=f"{printable(last.file)}:{last.line}", reason=reason)
    return now


def _rows(dataset: Dataset, wanted: Callable[[str], bool]) -> Iterator[tuple[Record, Split]]:
    """The rows of wanted ids; the others are not made into objects."""
    for side in SIDES:
        for batch in dataset.batches(side):
            places = [n for n, one in enumerate(batch.column("id").to_pylist()) if wanted(one)]
            if places:
                yield from ((record, side) for record, _ in arrow.records(batch.take(pa.array(places))))


def diff(a: Dataset, b: Dataset) -> dict[str, Any]:
    """What is in `b` and not in `a`, and the other way round.

    rows: added, removed, changed (same file and line, other content), moved (same content, other side), kept: counts of
    different rows, and under `examples` up to 20 places of each. settings: key -> [a, b]. sources: file -> "added",
    "removed", "changed". steps: reason -> [dropped in a, dropped in b].
    """
    ours, theirs = _index(a), _index(b)
    where_a = {(f, n): i for i, (_, f, n) in ours.items()}
    new = {i: place for i, place in theirs.items() if i not in ours}
    gone = {i: place for i, place in ours.items() if i not in theirs}
    changed = {i: p for i, p in new.items() if where_a.get(p[1:]) in gone}
    replaced = {where_a[p[1:]] for p in changed.values()}
    moved = {i: p for i, p in theirs.items() if i in ours and ours[i][0] != p[0]}
    groups: dict[str, dict[str, tuple[str, str, int]]] = {
        "added": {i: p for i, p in new.items() if i not in changed},
        "removed": {i: p for i, p in gone.items() if i not in replaced},
        "changed": changed,
        "moved": moved,
    }
    return {
        "a": a.hash,
        "b": b.hash,
        "rows": {
            **{name: len(group) for name, group in groups.items()},
            "kept": len(ours.keys() & theirs.keys()) - len(moved),
        },
        "examples": {
            name: [{"id": i, "side": s, "file": f, "line": n} for i, (s, f, n) in list(group.items())[:20]]
            for name, group in groups.items()
        },
        "settings": _settings(a.manifest["settings"], b.manifest["settings"]),
        "sources": _sources(a, b),
        "steps": _steps(a, b),
    }


def _index(dataset: Dataset) -> dict[str, tuple[str, str, int]]:
    """id -> (side, file, line) of every row."""
    out: dict[str, tuple[str, str, int]] = {}
    for side in SIDES:
        for batch in dataset.batches(side):
            columns = (batch.column(name).to_pylist() for name in ("id", "file", "line"))
            out.update({i: (side, f, n) for i, f, n in zip(*columns, strict=True)})
    return out


def _flat(setting: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(setting, dict):
        return {k: v for name, inner in setting.items() for k, v in _flat(inner, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): setting}


def _settings(a: Any, b: Any) -> dict[str, list[Any]]:
    left, right = _flat(a), _flat(b)
    return {k: [left.get(k), right.get(k)] for k in sorted(left.keys() | right.keys()) if left.get(k) != right.get(k)}


def _sources(a: Dataset, b: Dataset) -> dict[str, str]:
    left, right = ({s["file"]: s["sha256"] for s in d.manifest["sources"]} for d in (a, b))
    out = {}
    for name in sorted(left.keys() | right.keys()):
        if left.get(name) != right.get(name):
            out[name] = "added" if name not in left else "removed" if name not in right else "changed"
    return out


def _steps(a: Dataset, b: Dataset) -> dict[str, list[int]]:
    left, right = Counter[str](), Counter[str]()
    for counts, dataset in ((left, a), (right, b)):
        for step in dataset.manifest["steps"]:
            counts[step["reason"]] += step["dropped"]
    return {name: [left[name], right[name]] for name in sorted(left.keys() | right.keys()) if left[name] != right[name]}
