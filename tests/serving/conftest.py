"""The store of a server: a file, and a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.postgres_server import PostgresServer, postgres_server
from tuneloop.improvement.archive import Archive
from tuneloop.registry.store import FILE, metadata


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str | Path]:
    """Where the store is; an empty one, also for programs that go by the environment."""
    if request.param == "sqlite":
        yield tmp_path / FILE
        return
    url = request.getfixturevalue("postgres").url
    monkeypatch.setenv("TUNELOOP_STORE", url)
    yield url
    archive = Archive(tmp_path, url)
    with archive.store.write() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(text(f"DROP TABLE {table.name} CASCADE"))
    archive.close()
