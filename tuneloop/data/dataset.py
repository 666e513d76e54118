"""A dataset version on disk: raw files -> datasets/<name>/<hash12>/, written whole or not at all.

The hash is of what will be trained (dialogues, split, repeats, in order). What it was made from is a separate key in
`sources.json`, so that an unchanged `prepare` finds its version without doing the work again. Nothing here knows a
tokenizer: tokens are counted by a callable. A few lines over 400: building and keeping a version is one noun.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tuneloop.data import formats, profile
from tuneloop.data.clean import clean
from tuneloop.data.dedupe import dedupe
from tuneloop.data.formats import Source
from tuneloop.data.ledger import Ledger, words
from tuneloop.data.sniff import shown
from tuneloop.data.split import split
from tuneloop.disk import require_room
from tuneloop.errors import DataError, MachineError
from tuneloop.records import LedgerEntry, Message, Record
from tuneloop.sections import DataFile, Recipe

Split = Literal["train", "validation"]
CountTokens = Callable[[list[Record]], list[int]]
Found = list[tuple[DataFile, list[Source]]]

FORMAT = 1
BATCH = 256
"""Dialogues whose tokens are counted at once."""
_CODE = ("clean.py", "dataset.py", "dedupe.py", "formats.py", "shapes.py", "sniff.py", "split.py", "templates.py",
         "tokens.py", "../records.py")  # fmt: skip
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Dataset:
    """A version that exists and was found whole. `hash` is the first 12 hex digits."""

    path: Path
    name: str
    hash: str
    manifest: dict[str, Any]

    def records(self, split: Split) -> list[Record]:
        """The dialogues of one side, in the order of the files; training rows as often as their file's `repeat`."""
        return [record for record, side, repeat in self.rows() if side == split for _ in range(repeat)]

    def rows(self) -> Iterator[tuple[Record, Split, int]]:
        """Every dialogue once: (record, split, repeat)."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path / "records.parquet") as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    messages = tuple(_message(m) for m in json.loads(row["messages"]))
                    record = Record(messages, row["file"], row["line"], tuple(json.loads(row["tools"])))
                    yield record, row["split"], row["repeat"]


def _message(chat: dict[str, Any]) -> Message:
    calls = tuple(chat.get("tool_calls", ()))
    return Message(chat["role"], chat["content"], chat.get("reasoning_content", ""), calls)


def open_dataset(path: Path) -> Dataset:
    """The version in a folder. Raises TL-DATA-NO-DATASET where there is none, TL-DATA-DAMAGED where it is not whole."""
    file = path / "manifest.json"
    if not file.is_file():
        raise DataError("TL-DATA-NO-DATASET", where=shown(path))
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        for name in ("records.parquet", "ledger.jsonl"):
            if _digest(path / name) != manifest["files"][name]:
                raise ValueError(f"{name}: sha256")
        return Dataset(path, manifest["name"], manifest["hash"], manifest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("TL-DATA-DAMAGED", where=shown(path), error=str(error)) from error


def build(recipe: Recipe, workspace: Path, count_tokens: CountTokens) -> Dataset:
    """Read, clean, dedupe, measure and split the recipe's files; write the version, or find it if it is there.

    `count_tokens` gives the tokens of each dialogue as it will be trained. Raises DataError where a file cannot be
    used or nothing is left, MachineError where the disk has no room or refuses.
    """
    if not recipe.data:
        raise DataError("TL-DATA-NONE", where="data")
    home = workspace / "datasets" / recipe.name
    found = _find(recipe)
    try:
        digests = {s.label: _digest(s.path) for _, sources in found for s in sources}
    except OSError as error:
        raise DataError("TL-DATA-UNREADABLE", where=shown(error.filename), error=error.strerror) from error
    key = _cache_key(recipe, found, digests)
    known = _remembered(home, key)
    if known:
        return known
    work = _work(recipe, found, count_tokens)
    try:
        dataset = _write(home, recipe, found, digests, work)
        _remember(home, key, dataset.hash)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise MachineError("TL-MACHINE-DISK", where=shown(home), needed="?", free="0") from error
        raise MachineError("TL-MACHINE-FOLDER", where=shown(home), error=error.strerror or str(error)) from error
    return dataset


def _find(recipe: Recipe) -> Found:
    """Every file of the recipe with what it is; two files of one name get labels that tell them apart."""
    listed = [(file, formats.paths(file)) for file in recipe.data]
    names = formats.labels(path for _, paths in listed for path in paths)
    return [(file, formats.sources(file, names)) for file, _ in listed]


@dataclass
class _Work:
    """What comes out of the steps."""

    ledger: Ledger = field(default_factory=Ledger)
    kept: list[Record] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """Of each in `kept`."""
    sides: list[Split] = field(default_factory=list)
    """Of each in `kept`."""
    repeat: dict[tuple[str, int], int] = field(default_factory=dict)
    """(file, line) -> how often an epoch."""
    rows: Counter[str] = field(default_factory=Counter)
    """File -> rows read."""


def _work(recipe: Recipe, found: Found, count_tokens: CountTokens) -> _Work:
    work, part = _Work(), recipe.prepare
    for file, sources in found:
        for item in formats.read(file, sources):
            work.rows[item.file] += 1
            if isinstance(item, LedgerEntry):
                work.ledger.add(item)
                continue
            record, entries = clean(item)
            work.ledger.add(*entries)
            if record:
                work.kept.append(record)
                work.repeat.setdefault((record.file, record.line), file.repeat)
    if part.dedupe:
        work.kept, entries = dedupe(work.kept)
        work.ledger.add(*entries)
    if part.system:
        work.kept = [_with_system(record, part.system, work.ledger) for record in work.kept]
    _measure(work, count_tokens, part.max_length)
    rows = work.rows.total()
    if not work.kept:
        top = sorted((c for c in work.ledger.counts() if c["dropped"]), key=lambda c: -c["dropped"])[:3]
        reasons = "; ".join(f"{words().get(c['reason'], c['reason'])}: {c['dropped']}" for c in top)
        raise DataError("TL-DATA-NOTHING-LEFT", rows=rows, reasons=reasons)
    train, held = split(work.kept, part.validation, recipe.seed)
    out = {id(record) for record in held}
    work.sides = ["validation" if id(record) in out else "train" for record in work.kept]
    work.ledger.balance(rows, len(train) + len(held))
    return work


def _with_system(record: Record, system: str, ledger: Ledger) -> Record:
    if record.messages[0].role == "system":
        return record
    ledger.add(LedgerEntry("changed", "system", "system prompt added", record.file, record.line, record.id))
    return record.with_messages((Message("system", system), *record.messages))


def _measure(work: _Work, count_tokens: CountTokens, max_length: int) -> None:
    """Count tokens; drop what is longer than `max_length`, or what the chat template cannot render."""
    kept: list[Record] = []
    refusal: DataError | None = None
    for at in range(0, len(work.kept), BATCH):
        for record, count in _counted(work.kept[at : at + BATCH], count_tokens):
            step, reason, detail = "length", "too long", f"{count} / {max_length}"
            if isinstance(count, int) and count <= max_length:
                kept.append(record)
                work.tokens.append(count)
                continue
            if isinstance(count, DataError):
                refusal = count
                step, reason, detail = "template", "template refuses", shown(count.facts.get("error", count.code))
            work.ledger.add(LedgerEntry("dropped", step, reason, record.file, record.line, record.id, detail))
    if refusal and not kept:
        raise refusal
    work.kept = kept


def _counted(records: list[Record], count_tokens: CountTokens) -> Iterable[tuple[Record, int | DataError]]:
    """Records with their tokens; where the batch fails, one by one, so that the fault stays with its record."""
    try:
        return list(zip(records, count_tokens(records), strict=True))
    except DataError:
        pass
    out: list[tuple[Record, int | DataError]] = []
    for record in records:
        try:
            out.append((record, count_tokens([record])[0]))
        except DataError as error:
            out.append((record, error))
    return out


def _write(home: Path, recipe: Recipe, found: Found, digests: dict[str, str], work: _Work) -> Dataset:
    """The version's folder: made beside its place under another name, then renamed into it."""
    rows = [
        _row(record, side, work.repeat[record.file, record.line] if side == "train" else 1)
        for record, side in zip(work.kept, work.sides, strict=True)
    ]
    digest, size = _content_hash(rows)
    target = home / digest
    require_room(home, 3 * size + 400 * len(work.ledger.entries) + (1 << 20))
    draft = home / f".{digest}.{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        _write_parquet(draft / "records.parquet", rows)
        work.ledger.write(draft / "ledger.jsonl")
        files = {name: _digest(draft / name) for name in ("records.parquet", "ledger.jsonl")}
        manifest = _manifest(recipe, found, digests, work) | {"hash": digest, "files": files}
        if (there := _same(target, manifest)) is not None:
            return there
        (draft / "card.html").write_text(
            profile.card(Dataset(draft, recipe.name, digest, manifest)), encoding="utf-8", errors="backslashreplace"
        )
        _write_json(draft / "manifest.json", manifest)
        for path in draft.iterdir():
            _sync(path)
        _move(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return open_dataset(target)


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


def _content_hash(rows: list[dict[str, Any]]) -> tuple[str, int]:
    """12 hex digits, and the bytes they are of. `line` is left out: a blank line more in a file is no other dataset."""
    whole, size = hashlib.sha256(), 0
    for row in rows:
        parts = [row[key] for key in ("split", "repeat", "file", "messages", "tools")]
        line = json.dumps(parts, ensure_ascii=False).encode() + b"\n"
        whole.update(line)
        size += len(line)
    return whole.hexdigest()[:12], size


def _move(draft: Path, target: Path) -> None:
    """Rename into place; what is there goes, be it broken or of other files (another process may be quicker)."""
    old = target.with_name(draft.name + ".old")
    for _ in range(5):
        try:
            os.rename(draft, target)
            break
        except OSError:
            if not target.exists():
                raise
        with suppress(FileNotFoundError):
            os.rename(target, old)
    shutil.rmtree(old, ignore_errors=True)


def _row(record: Record, side: Split, repeat: int) -> dict[str, Any]:
    return {
        "id": record.id,
        "split": side,
        "repeat": repeat,
        "file": record.file,
        "line": record.line,
        "messages": json.dumps(record.chat(), ensure_ascii=False),
        "tools": json.dumps(record.tools, ensure_ascii=False),
    }


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    schema = pa.schema([("id", text), ("split", text), ("repeat", pa.int32()), ("file", text), ("line", pa.int64()),
                        ("messages", text), ("tools", text)])  # fmt: skip
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for at in range(0, len(rows), 1024):
            writer.write_batch(pa.RecordBatch.from_pylist(rows[at : at + 1024], schema=schema))


def _manifest(recipe: Recipe, found: Found, digests: dict[str, str], work: _Work) -> dict[str, Any]:
    sides, lengths = Counter(work.sides), work.tokens
    per_side = Counter[str]()
    for side, count in zip(work.sides, lengths, strict=True):
        per_side[side] += count
    kept = {(record.file, record.line) for record in work.kept}
    changed = {(e.file, e.line) for e in work.ledger.entries if e.action == "changed"} & kept
    sources = {
        s.label: {
            "file": s.label, "sha256": digests[s.label], "rows": work.rows[s.label], "container": s.guess.container,
            "encoding": s.guess.encoding, "shape": s.guess.shape, "sure": s.guess.sure, "why": s.guess.why,
        }
        for _, group in found for s in group
    }  # fmt: skip
    return {
        "format": FORMAT,
        "name": recipe.name,
        "hash": "",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "sources": list(sources.values()),
        "steps": work.ledger.counts(),
        "counts": {
            "rows_in": work.rows.total(), "train": sides["train"], "validation": sides["validation"],
            "dropped": work.ledger.dropped, "changed": len(changed),
        },
        "tokens": {
            "total": sum(lengths), "longest": max(lengths), "mean": round(sum(lengths) / len(lengths), 1),
            "train": per_side["train"], "validation": per_side["validation"],
        },
        "lengths": profile.histogram(lengths),
        "repeat": {s.label: file.repeat for file, group in found for s in group},
        "settings": {
            "seed": recipe.seed, "model": recipe.model.name, "prepare": recipe.prepare.model_dump(mode="json"),
            "data": [{"files": [s.label for s in group], "rows": file.rows, "columns": file.columns}
                     for file, group in found],
        },
    }  # fmt: skip


def _cache_key(recipe: Recipe, found: Found, digests: dict[str, str]) -> str:
    """Digest of all that a version depends on: file contents, settings, the model's tokenizer, this room's code."""
    here = Path(__file__).parent
    model = recipe.model
    beside = [Path(model.name) / name for name in _TOKENIZER] + [Path(model.template or "")]
    parts = {
        "format": FORMAT,
        "files": [[s.label, digests[s.label], f.rows, f.columns, f.repeat] for f, group in found for s in group],
        "prepare": recipe.prepare.model_dump(mode="json"),
        "seed": recipe.seed,
        "model": [model.name, model.revision, model.template],
        "tokenizer": [_digest(path) for path in beside if path.is_file()],
        "code": [_digest(here / name) for name in _CODE if (here / name).is_file()],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _known(home: Path) -> dict[str, str]:
    try:
        value = json.loads((home / "sources.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _remembered(home: Path, key: str) -> Dataset | None:
    """The version that was made from the same, if it is still whole."""
    digest = _known(home).get(key, "")
    if not isinstance(digest, str) or len(digest) != 12 or not digest.isalnum():
        return None
    try:
        return open_dataset(home / digest)
    except DataError:
        return None


def _remember(home: Path, key: str, digest: str) -> None:
    draft = home / f".sources.{os.getpid()}"
    _write_json(draft, _known(home) | {key: digest})
    os.replace(draft, home / "sources.json")


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _sync(path: Path) -> None:
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
