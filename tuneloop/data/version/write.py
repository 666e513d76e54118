"""The folder of a dataset version: made beside its place under another name, then renamed into it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tuneloop.base.errors import DataError
from tuneloop.base.files import flush, sha256_of
from tuneloop.base.records import LedgerEntry
from tuneloop.base.refusals import require_space
from tuneloop.data import arrow
from tuneloop.data.card import page
from tuneloop.data.card.excerpts import View
from tuneloop.data.card.profile import histogram
from tuneloop.data.ledger import Ledger, entries
from tuneloop.data.tokens import samples
from tuneloop.data.tokens.samples import Sequences
from tuneloop.data.version.dataset import FORMAT, Dataset, open_dataset
from tuneloop.data.version.holdout import SplitChoice
from tuneloop.data.version.lengths import chosen, longest
from tuneloop.data.version.rows import PreparedRows
from tuneloop.data.version.shards import Sources, side_of
from tuneloop.data.version.split import SIDES, Split
from tuneloop.recipe.schema import Recipe


def write(
    home: Path,
    draft: Path,
    recipe: Recipe,
    sources: Sources,
    rows: PreparedRows,
    choice: SplitChoice,
    key: str,
    view: View | None = None,
) -> Dataset:
    """The version of `rows` as they were chosen; `view` shows samples on the card.

    `draft` is the folder that it is made in, on the same disk as `home`; what an earlier try left there goes.
    """
    out = choice.sides
    name, size = _content_hash(rows, out)
    target = home / name
    require_space(home, size + (1 << 20))
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "data").mkdir(parents=True)
    try:
        ledger, touched = _ledger(draft / "ledger.jsonl", rows, choice.entries)
        ledger.balance(rows.read.total(), sum(map(bool, out)))
        lengths = {side: _side(draft, rows, out, side, key) for side in SIDES}
        _card_for_loaders(draft, recipe.name, [side for side in SIDES if len(lengths[side])])
        data_files = sorted([*draft.glob("data/*.parquet"), draft / "ledger.jsonl"])
        manifest = _manifest(recipe, sources, rows, out, ledger, lengths)
        manifest["counts"] |= touched
        manifest["alike"] = choice.alike
        for augmented in (meta["augment"] for meta in rows.metas if "augment" in meta):
            manifest["augment"] = augmented
        manifest |= {"hash": name, "files": {str(f.relative_to(draft).as_posix()): sha256_of(f) for f in data_files}}
        if (there := _same(target, manifest)) is not None:
            _keep_tokens(draft, there.path, key)
            return there
        page.write(Dataset(draft, recipe.name, name, manifest), key, view)
        text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
        (draft / "manifest.json").write_text(text, encoding="utf-8", errors="backslashreplace")
        for path in (p for p in draft.rglob("*") if p.is_file()):
            flush(path)
        _move(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return open_dataset(target)


def _content_hash(rows: PreparedRows, out: Sequence[str]) -> tuple[str, int]:
    """12 hex digits, and a bound of the bytes that the folder needs.

    A line number is left out: a blank line more in a file is no other dataset.
    """
    digest = hashlib.sha256()
    for identity, side, repeat, file in zip(rows.ids, out, rows.repeats, rows.files, strict=True):
        if side:
            digest.update(f"{side} {repeat} {file} {identity}\n".encode("utf-8", "surrogatepass"))
    folders = [part.folder for part in rows.parts]
    size = sum(f.stat().st_size for folder in folders for f in folder.rglob("*") if f.is_file())
    return digest.hexdigest()[:12], 2 * size


def _ledger(path: Path, rows: PreparedRows, more: Sequence[LedgerEntry]) -> tuple[Ledger, dict[str, int]]:
    """All parts' ledgers as one; and the raw rows that were changed and marked, each counted once."""
    lines: dict[tuple[str, str], array[int]] = {}
    with Ledger(path) as ledger:
        for e in chain(chain.from_iterable(map(entries, rows.ledgers)), more):
            ledger.add(e)
            if e.action in ("changed", "marked"):
                lines.setdefault((e.action, e.file), array("q")).append(e.line)
    touched = {
        action: sum(len(set(numbers)) for (a, _), numbers in lines.items() if a == action)
        for action in ("changed", "marked")
    }
    return ledger, touched


def _side(draft: Path, rows: PreparedRows, out: Sequence[str], side: Split, key: str) -> NDArray[np.int64]:
    """Write one side's records and samples; returns each record's tokens, int64 [records]."""
    import pyarrow.parquet as pq

    mask = np.asarray([one == side for one in out], bool)
    if not mask.any():
        return np.zeros(0, np.int64)
    lengths: list[NDArray[np.int64]] = []
    taken: list[tuple[int, NDArray[np.int64]]] = []
    with pq.ParquetWriter(draft / "data" / f"{side}.parquet", arrow.SCHEMA, compression="zstd") as writer:
        for n, (table, part) in enumerate(zip(rows.tables, rows.parts, strict=True)):
            mine = np.flatnonzero(mask[rows.starts[n] : rows.starts[n + 1]])
            if not len(mine):
                continue
            side_rows = table.select(arrow.SCHEMA.names).take(pa.array(mine))
            writer.write_table(side_rows.cast(arrow.SCHEMA), row_group_size=arrow.BATCH * 8)
            lengths.append(longest(part.samples())[mine])
            repeats = np.asarray(table.column("repeat"))[mine] if side == "train" else 1
            taken.append((n, np.repeat(mine, repeats)))
    parts: Iterator[Sequences] = (chosen(rows.parts[n].samples(), places) for n, places in taken)
    samples.write(draft / "tokens" / key / side, parts)
    return np.concatenate(lengths)


def _card_for_loaders(draft: Path, name: str, there: list[Split]) -> None:
    """README.md in the form that `datasets.load_dataset` and hubs read: which file is which split."""
    files = "".join(f"  - split: {side}\n    path: data/{side}.parquet\n" for side in there)
    text = (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n\n# {name}\n\nA tuneloop dataset version.\n"
    )
    (draft / "README.md").write_text(text, encoding="utf-8")


def _manifest(
    recipe: Recipe,
    sources: Sources,
    rows: PreparedRows,
    out: Sequence[str],
    ledger: Ledger,
    lengths: dict[Split, NDArray[np.int64]],
) -> dict[str, Any]:
    read = rows.read
    everything = np.concatenate([lengths[side] for side in SIDES])
    file_groups = sources.groups
    read_from = {
        s.label: {
            "file": s.label,
            "sha256": sources.digests[s.label],
            "rows": read[s.label],
            "container": s.guess.container,
            "encoding": s.guess.encoding,
            "shape": s.guess.shape,
            "kind": s.guess.kind,
            "sure": s.guess.sure,
            "why": s.guess.why,
            "doubt": s.guess.doubt,
            "holds": s.guess.holds,
            "split": side_of(file, s) or "auto",
        }
        for file, group in file_groups
        for s in group
    }
    return {
        "format": FORMAT,
        "name": recipe.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "sources": list(read_from.values()),
        "left_out": [{"file": name, "why": why} for name, why in sources.left_out],
        "steps": ledger.counts(),
        "counts": {
            "rows_in": read.total(),
            **{side: len(lengths[side]) for side in SIDES},
            "dropped": ledger.total("dropped"),
            "added": ledger.total("added"),
        },
        "kinds": dict(Counter(k for k, side in zip(rows.kinds, out, strict=True) if side)),
        "labels": dict(Counter(v for v, side in zip(rows.labels, out, strict=True) if side and v).most_common(100)),
        "tokens": {
            "total": int(everything.sum()),
            "longest": int(everything.max()),
            "mean": round(float(everything.mean()), 1),
            **{side: int(lengths[side].sum()) for side in SIDES},
        },
        "lengths": histogram(everything.tolist()),
        "repeat": {s.label: file.repeat for file, group in file_groups for s in group},
        "settings": {
            "seed": recipe.seed,
            "model": recipe.model.name,
            "prepare": recipe.prepare.model_dump(mode="json"),
            "data": [
                {"files": [s.label for s in group], **file.model_dump(mode="json", exclude={"path"})}
                for file, group in file_groups
            ],
        },
    }


def _same(target: Path, manifest: dict[str, Any]) -> Dataset | None:
    """The version in its place, if it is whole and was made from the same files with the same ledger.

    Other files may lead to the same rows: then the rows stay, and ledger, lines and manifest become those of the last
    time, so that no dropped row of today hides behind the ledger of yesterday.
    """
    try:
        there = open_dataset(target)
    except DataError:
        return None
    return there if all(there.manifest.get(k) == manifest[k] for k in ("files", "sources", "settings")) else None


def _keep_tokens(draft: Path, there: Path, key: str) -> None:
    """The samples for another tokenizer stand beside those that are there."""
    (there / "tokens").mkdir(exist_ok=True)
    with suppress(OSError):
        os.rename(draft / "tokens" / key, there / "tokens" / key)


def _move(draft: Path, target: Path) -> None:
    """Rename into place; what is there goes, be it broken or of other files (another process may be quicker)."""
    old: list[Path] = []
    for n in range(5):
        try:
            os.rename(draft, target)
            break
        except OSError:
            if not target.exists() or n == 4:
                raise
        old.append(draft.with_name(f"{draft.name}.old-{n}"))
        shutil.rmtree(old[-1], ignore_errors=True)
        with suppress(FileNotFoundError):
            os.rename(target, old[-1])
    for one in old:
        shutil.rmtree(one, ignore_errors=True)
