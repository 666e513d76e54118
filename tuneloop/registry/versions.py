"""The registry: which run became which version, from what, and which version an alias names.

The bytes of a version lie once, under their own hash, in `models/blobs/sha256/`; its row in the store lists them. So a
version outlives its run folder, two versions share what they have in common, and damage is found when it is read.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sqlalchemy import Connection, Row, func, select

from tuneloop.base import refusals
from tuneloop.base.errors import ModelError, RunError, nearby
from tuneloop.base.files import sha256_of
from tuneloop.base.language import listed, t
from tuneloop.hub import resolve
from tuneloop.hub.known import find as find_model
from tuneloop.hub.known import nearest
from tuneloop.registry.store import FILE, Store, aliases, now, open_store
from tuneloop.registry.store import versions as table
from tuneloop.runs.run import BASE, BEGUN, Run, near_run, open_run, run_recipe

NEWEST = "latest"
"""The selector that always means the newest version; no alias may be called so."""
LINEAGE = ("recipe.yaml", "dataset.json", "plan.json", "evaluation.json", "merged.json", "begun.json")
"""Files of the run that go with the weights: what it was asked to do, and how well it did."""
BENEATH = (BASE, BEGUN)
"""Folders of the run that its result is nothing without, or cannot be compared without."""

_ALIAS = re.compile(r"[a-zA-Z][\w.-]{0,63}")
_NUMBER = re.compile(r"v([1-9]\d{0,8})")


@dataclass(frozen=True, slots=True)
class Version:
    """One registered result. `files`: relative name -> sha256; `metrics`: before and after of evaluation.json."""

    id: str
    name: str
    number: int
    run: str
    base_model: str
    base_revision: str
    dataset_hash: str
    method: str
    created: str
    metrics: dict[str, Any]
    files: dict[str, str]
    aliases: tuple[str, ...]
    workspace: Path

    @property
    def ref(self) -> str:
        """How the version is called: "name:v3"."""
        return f"{self.name}:v{self.number}"

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "aliases": list(self.aliases), "workspace": str(self.workspace), "ref": self.ref}


def register(run: Path, workspace: Path, *, store: Store | None = None) -> Version:
    """Make a finished run the next version of its recipe's name; the same run with the same weights keeps its version.

    `store` is an open store of another place than the workspace's own file. Raises TL-RUN-MISSING, TL-RUN-UNFINISHED.
    """
    if not (run / "recipe.yaml").is_file():
        raise RunError("TL-RUN-MISSING", where=str(run), path=run)
    recipe = run_recipe(run)
    files = {name: _keep(path, workspace) for name, path in _result_files(run)}
    row = {
        "name": recipe.name,
        "run": _relative(run, workspace),
        "base_model": recipe.model.name,
        "base_revision": recipe.model.revision or "",
        "dataset_hash": str(Run(run).read("dataset.json").get("hash", "")),
        "method": recipe.train.method,
        "metrics": json.dumps(_metrics(run), ensure_ascii=False, sort_keys=True),
        "files": json.dumps(files, ensure_ascii=False, sort_keys=True),
    }
    # The weights make the version. A run that was evaluated anew is the same version, with the new figures.
    own = {name: digest for name, digest in files.items() if name.partition("/")[0] not in BENEATH}
    weights = sorted((name, digest) for name, digest in own.items() if name not in LINEAGE)
    row["id"] = hashlib.sha256(json.dumps([row["name"], row["run"], weights]).encode()).hexdigest()

    def insert(connection: Connection) -> None:
        # Both checks read inside the write transaction. Where the database lets two in at once (PostgreSQL), the unique
        # keys stop the second, and `retried` starts it over with what the first has written.
        if connection.execute(table.update().where(table.c.id == row["id"]).values(**row)).rowcount:
            return
        highest = connection.execute(select(func.max(table.c.version)).where(table.c.name == recipe.name)).scalar()
        connection.execute(table.insert().values(**row, version=(highest or 0) + 1, created=now()))

    with _opened(workspace, store) as opened:
        opened.retried(insert)
        return next(v for v in _all(opened, workspace, recipe.name) if v.id == row["id"])


def versions(workspace: Path, name: str | None = None, *, store: Store | None = None) -> list[Version]:
    """All versions, or those of one name, by name and number. A workspace without a store has none."""
    if store is None and not _path(workspace).is_file():
        return []
    with _opened(workspace, store) as opened:
        return _all(opened, workspace, name)


def find(workspace: Path, ref: str, *, store: Store | None = None) -> Version:
    """The version that "name" (its newest), "name:v3" or "name:alias" means. Raises TL-RUN-VERSION."""
    name, _, selector = ref.partition(":")
    known = versions(workspace, store=store)
    mine = [v for v in known if v.name == name]
    number = _NUMBER.fullmatch(selector)
    if not selector or selector == NEWEST:
        matches = mine[-1:]
    elif number:
        matches = [v for v in mine if v.number == int(number[1])]
    else:
        matches = [v for v in mine if selector in v.aliases]
    if not matches:
        names = [v.ref for v in mine] + [f"{v.name}:{a}" for v in mine for a in v.aliases]
        names = names or sorted({v.name for v in known})
        near = difflib.get_close_matches(ref, names, 5, 0.3) or names[-5:]
        raise RunError("TL-RUN-VERSION", where=ref, ref=ref, known=listed(near) or "-")
    return matches[0]


def promote(workspace: Path, ref: str, alias: str, *, store: Store | None = None) -> Version:
    """Let `alias` mean the version `ref` from now on; going back is promoting the earlier one. Returns the version.

    Raises TL-RUN-VERSION for an unknown version, TL-RUN-ALIAS for a word that cannot be an alias.
    """
    if not _ALIAS.fullmatch(alias) or _NUMBER.fullmatch(alias) or alias == NEWEST:
        raise RunError("TL-RUN-ALIAS", where=alias, alias=alias)
    version = find(workspace, ref, store=store)
    key = (aliases.c.name == version.name) & (aliases.c.alias == alias)

    def point(connection: Connection) -> None:
        changed = connection.execute(aliases.update().where(key).values(version=version.number))
        if not changed.rowcount:
            connection.execute(aliases.insert().values(name=version.name, alias=alias, version=version.number))

    with _opened(workspace, store) as opened:
        opened.retried(point)
    return find(workspace, version.ref, store=store)


def materialise(version: Version, target: Path) -> Path:
    """The version's files as a folder again, shaped like a run (recipe.yaml, adapter/ or model/); returns `target`.

    Raises TL-RUN-EXISTS when there is such a folder, TL-RUN-BLOB when a stored file is gone or was changed.
    """
    if target.exists():
        raise RunError("TL-RUN-EXISTS", where=str(target), path=target)
    blobs = {name: _blob(version.workspace, digest) for name, digest in version.files.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    refusals.require_space(target.parent, sum(path.stat().st_size for path in blobs.values() if path.is_file()))
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        for name, blob in blobs.items():
            _restore(blob, partial.joinpath(*_inside(version, name)), version.files[name], version)
        try:
            partial.rename(target)
        except OSError as error:
            raise RunError("TL-RUN-EXISTS", where=str(target), path=target) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def stored(version: Version, name: str) -> Path | None:
    """Where the bytes of one of a version's files lie, by its relative name; None where it has no such file."""
    digest = version.files.get(name)
    return _blob(version.workspace, digest) if digest is not None else None


def locate(workspace: Path, ref: str) -> Path | None:
    """The run-shaped folder that `ref` means: a run folder by its path or name, or a version, laid out if need be.

    None when it is neither, so that the caller may take it for a model. Raises TL-RUN-VERSION for "name:selector" of a
    known name without such a version.
    """
    try:
        return open_run(ref, workspace).path
    except RunError as error:
        if error.code != "TL-RUN-MISSING":
            raise
    if ref.partition(":")[0] not in {v.name for v in versions(workspace)}:
        return None
    version = find(workspace, ref)
    folder = workspace / "models" / "versions" / f"{version.name}-v{version.number}-{version.id[:8]}"
    if folder.is_dir() and not all(_is(folder / n, h) for n, h in version.files.items()):
        shutil.rmtree(folder)
    if not folder.is_dir():
        try:
            materialise(version, folder)
        except RunError as error:
            if error.code != "TL-RUN-EXISTS":  # another process laid it out in the meantime
                raise
    return folder


def require(workspace: Path, ref: str) -> None:
    """Raise for a word that is neither a run, nor a version, nor a model that could be looked for.

    TL-RUN-NOTHING, TL-RUN-VERSION, TL-MODEL-PATH. Nothing is loaded, fetched or laid out, so it takes no time.
    """
    if os.path.isdir(os.path.expanduser(ref)):
        return
    with suppress(RunError):
        open_run(ref, workspace)
        return
    known = {v.name for v in versions(workspace)}
    if ref.partition(":")[0] in known:
        find(workspace, ref)
        return
    if re.split(r"[/\\]", ref)[-2:-1] == ["runs"] or not (resolve.is_path(ref) or "/" in ref or find_model(ref)):
        near = near_run(ref, workspace) or near_names(ref, sorted(known))
        raise RunError("TL-RUN-NOTHING", where=ref, near=near, workspace=workspace.resolve())
    if resolve.is_path(ref):
        raise ModelError("TL-MODEL-PATH", where=ref, name=ref, near=nearby(ref))


def near_names(ref: str, versions: Sequence[str]) -> str:
    """Words for an error: versions and models that are called much like `ref`."""
    names = difflib.get_close_matches(ref.partition(":")[0], versions, 3, 0.6) + nearest(ref)
    return t("; near it: {names}", names=listed(names)) if names else ""


def _path(workspace: Path) -> Path:
    return workspace / FILE


@contextmanager
def _opened(workspace: Path, store: Store | None) -> Iterator[Store]:
    if store is not None:
        yield store
        return
    opened = open_store(_path(workspace))
    try:
        yield opened
    finally:
        opened.close()


def _all(store: Store, workspace: Path, name: str | None) -> list[Version]:
    rows, names = select(table).order_by(table.c.name, table.c.version), select(aliases).order_by(aliases.c.alias)
    if name is not None:
        rows, names = rows.where(table.c.name == name), names.where(aliases.c.name == name)
    with store.read() as connection:
        by_version: dict[tuple[str, int], list[str]] = {}
        for alias in connection.execute(names):
            by_version.setdefault((alias.name, alias.version), []).append(alias.alias)
        fetched = connection.execute(rows).all()
    return [_version(row, by_version.get((row.name, row.version), []), workspace) for row in fetched]


def _version(row: Row[Any], alias: list[str], workspace: Path) -> Version:
    return Version(
        id=row.id,
        name=row.name,
        number=row.version,
        run=row.run,
        base_model=row.base_model,
        base_revision=row.base_revision,
        dataset_hash=row.dataset_hash,
        method=row.method,
        created=row.created,
        metrics=json.loads(row.metrics),
        files=json.loads(row.files),
        aliases=tuple(alias),
        workspace=workspace,
    )


def _result_files(run: Path) -> list[tuple[str, Path]]:
    """(relative name, file) of all that a version consists of. Raises TL-RUN-UNFINISHED."""
    folder = Run(run).trained_folder()
    weights = sorted(p for p in folder.rglob("*") if p.is_file()) if folder else []
    if not any(p.suffix == ".safetensors" for p in weights):
        raise RunError("TL-RUN-UNFINISHED", where=str(run), path=run)
    weights += [p for name in BENEATH for p in sorted((run / name).rglob("*")) if p.is_file()]
    lineage = [run / name for name in LINEAGE if (run / name).is_file()]
    return [(p.relative_to(run).as_posix(), p) for p in [*lineage, *weights]]


def _keep(path: Path, workspace: Path) -> str:
    """Bring a file's bytes into the blobs; returns their sha256. A copy, not a link: an editor must not reach it."""
    source = path.resolve()
    digest = sha256_of(source)
    blob = _blob(workspace, digest)
    if _is(blob, digest):
        return digest
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(f".{digest}.{uuid.uuid4().hex[:8]}.partial")
    try:
        refusals.require_space(blob.parent, source.stat().st_size)
        _copy(source, partial)
        os.replace(partial, blob)
    finally:
        partial.unlink(missing_ok=True)
    return digest


def _restore(blob: Path, target: Path, digest: str, version: Version) -> None:
    """Copy a blob to its place. A copy, not a link: whoever edits the folder must not edit the registry."""
    if not blob.is_file():
        raise RunError("TL-RUN-BLOB", where=version.ref, path=blob)
    target.parent.mkdir(parents=True, exist_ok=True)
    _copy(blob, target)
    if sha256_of(target) != digest:
        raise RunError("TL-RUN-BLOB", where=version.ref, path=blob)


def _inside(version: Version, name: str) -> tuple[str, ...]:
    """The parts of a stored file name. The store may come from a stranger: a name must stay below the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or any(p == ".." or "\\" in p or ":" in p for p in path.parts):
        raise RunError("TL-RUN-BLOB", where=version.ref, path=name)
    return path.parts


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, 1 << 20)
        write.flush()
        os.fsync(write.fileno())


def _blob(workspace: Path, digest: str) -> Path:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise RunError("TL-RUN-BLOB", where=digest, path=digest)
    return workspace / "models" / "blobs" / "sha256" / digest


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_of(path) == digest


def _relative(run: Path, workspace: Path) -> str:
    run, workspace = run.resolve(), workspace.resolve()
    return run.relative_to(workspace).as_posix() if run.is_relative_to(workspace) else str(run)


def _metrics(run: Path) -> dict[str, Any]:
    evaluation = Run(run).read("evaluation.json")
    return {key: evaluation[key] for key in ("before", "after") if key in evaluation}
