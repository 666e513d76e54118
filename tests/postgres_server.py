"""A real PostgreSQL of a test's own, on a free port in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class PostgresServer:
    """`url` is that of an empty database; `folder` holds its files."""

    url: str
    folder: Path


def _program(name: str) -> str:
    found = shutil.which(name) or next((str(p) for p in Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), None)
    if found is None:
        words = "PostgreSQL is not installed: apt-get install postgresql"
        pytest.fail(words) if os.environ.get("CI") else pytest.skip(words)
    return str(Path(str(found)).resolve())


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Root may not run it: then the user that the package has made does."""
    if not os.environ.get("CI"):
        pytest.importorskip("psycopg")
    initdb, postgres = _program("initdb"), _program("postgres")
    folder = Path(tempfile.mkdtemp(prefix="tuneloop-postgres-"))
    user = "postgres" if hasattr(os, "geteuid") and os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    try:
        files = folder / "data"
        subprocess.run(
            [initdb, "-D", str(files), "-U", "tuneloop", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            check=True, capture_output=True, user=user, cwd=folder,
        )  # fmt: skip
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        process = subprocess.Popen(
            [postgres, "-D", str(files), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder), "-F"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=user, cwd=folder,
        )  # fmt: skip
        try:
            url = f"postgresql://tuneloop@127.0.0.1:{port}/postgres"
            _await(url, process)
            yield PostgresServer(url, files)
        finally:
            process.send_signal(signal.SIGINT)  # SIGTERM would wait for connections that somebody has left
            process.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _await(url: str, process: subprocess.Popen[bytes]) -> None:
    import psycopg

    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            assert process.poll() is None, "postgres has ended"
            time.sleep(0.05)
    raise AssertionError("postgres did not start")
