"""The store: migrations, transactions, two processes at once, and PostgreSQL where there is one."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, insert, inspect, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateTable

from tuneloop.base.errors import MachineError, RunError
from tuneloop.registry import store as stores
from tuneloop.registry.store import MIGRATIONS, Store, aliases, metadata, open_store, schema_version, versions


def row(name: str, number: int) -> dict[str, object]:
    return {
        "id": uuid.uuid4().hex, "name": name, "version": number, "run": "runs/x-1", "base_model": "m",
        "base_revision": "", "dataset_hash": "d", "method": "lora", "created": stores.now(), "metrics": "{}",
        "files": "{}",
    }  # fmt: skip


def next_version(store: Store, name: str) -> int:
    """What registering does: read the highest number, write the next."""

    def work(connection: Connection) -> int:
        highest = connection.execute(select(func.max(versions.c.version)).where(versions.c.name == name)).scalar()
        connection.execute(insert(versions).values(**row(name, (highest or 0) + 1)))
        return (highest or 0) + 1

    return store.retried(work)


def test_new_file_gets_all_migrations(tmp_path: Path) -> None:
    store = open_store(tmp_path / "deep" / "tuneloop.db")
    assert store.version == len(MIGRATIONS)
    with store.read() as connection:
        assert set(metadata.tables) <= set(inspect(connection).get_table_names())
    store.close()


def test_migrations_make_the_tables_that_the_code_describes(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s.db")
    with store.read() as connection:
        look = inspect(connection)
        for name, table in metadata.tables.items():
            found = {c["name"]: (str(c["type"]), c["nullable"]) for c in look.get_columns(name)}
            assert found == {c.name: (str(c.type), bool(c.nullable)) for c in table.columns}, name
            assert look.get_pk_constraint(name)["constrained_columns"] == [c.name for c in table.primary_key]
        assert look.get_unique_constraints("versions")[0]["column_names"] == ["name", "version"]
    store.close()


def test_write_ahead_log_and_foreign_keys_are_on(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s.db")
    with store.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == stores.BUSY_SECONDS * 1000
    with pytest.raises(IntegrityError), store.write() as connection:
        connection.execute(insert(aliases).values(name="nobody", alias="production", version=1))
    store.close()


def test_a_block_that_raises_leaves_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s.db")

    def fail() -> None:
        with store.write() as connection:
            connection.execute(insert(versions).values(**row("a", 1)))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with store.read() as connection:
        assert connection.execute(select(func.count()).select_from(versions)).scalar() == 0
    store.close()


def test_missing_migrations_are_applied_to_an_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.db"
    store = open_store(path)
    with store.write() as connection:
        connection.execute(insert(versions).values(**row("kept", 1)))
    store.close()
    monkeypatch.setattr(stores, "MIGRATIONS", [*MIGRATIONS, ("CREATE TABLE extra (x INTEGER)",)])
    store = open_store(path)
    assert store.version == len(MIGRATIONS) + 1
    with store.read() as connection:
        assert inspect(connection).has_table("extra")
        assert connection.execute(select(versions.c.name)).scalar_one() == "kept"
    store.close()


def test_a_migration_that_fails_is_undone_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.db"
    open_store(path).close()
    broken = ("CREATE TABLE half (x INTEGER)", "CREATE TABLE nonsense (")
    monkeypatch.setattr(stores, "MIGRATIONS", [*MIGRATIONS, broken])
    with pytest.raises(RunError, match="TL-RUN-STORE"):
        open_store(path)
    monkeypatch.undo()
    store = open_store(path)
    assert store.version == len(MIGRATIONS)
    with store.read() as connection:
        assert not inspect(connection).has_table("half")
    store.close()


def test_a_store_of_a_later_tuneloop_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = open_store(path)
    with store.write() as connection:
        connection.execute(insert(schema_version).values(number=99, applied=stores.now()))
    store.close()
    with pytest.raises(RunError) as caught:
        open_store(path)
    assert caught.value.code == "TL-RUN-STORE-NEWER"
    assert "99" in str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(b"this is a text, and long enough to be looked at as a database header" * 20)
    with pytest.raises(RunError) as caught:
        open_store(path)
    assert caught.value.code == "TL-RUN-STORE"
    assert "not a database" in str(caught.value)
    assert str(path) in str(caught.value)


def test_folder_names_that_mean_something_in_a_url(tmp_path: Path) -> None:
    path = tmp_path / "a?b#c %41 中文" / "s.db"
    open_store(path).close()
    assert path.is_file()


@pytest.mark.parametrize("url", ["mysql://host/db", "http://example.invalid/x", "://"])
def test_urls_of_other_databases(url: str) -> None:
    with pytest.raises(RunError) as caught:
        open_store(url)
    assert caught.value.code == "TL-RUN-STORE-URL"


def test_an_sqlite_url_is_a_file(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path / 'u.db'}").close()
    assert (tmp_path / "u.db").is_file()


def test_passwords_are_not_shown() -> None:
    with pytest.raises((RunError, MachineError)) as caught:
        open_store("postgresql://user:hunter2@127.0.0.1:1/db")
    assert caught.value.code in {"TL-RUN-STORE", "TL-MACHINE-EXTRA"}
    assert "hunter2" not in str(caught.value)


def test_a_locked_database_is_said_to_be_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.db"
    open_store(path).close()
    monkeypatch.setattr(stores, "BUSY_SECONDS", 0.05)
    store = open_store(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RunError) as caught:
        next_version(store, "x")
    assert caught.value.code == "TL-RUN-STORE-BUSY"
    other.execute("ROLLBACK")
    other.close()
    assert next_version(store, "x") == 1
    store.close()


def test_readers_do_not_wait_for_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "BUSY_SECONDS", 0.05)
    store = open_store(tmp_path / "s.db")
    with store.write() as writer:
        writer.execute(insert(versions).values(**row("new", 1)))
        with store.read() as reader:
            assert reader.execute(select(func.count()).select_from(versions)).scalar() == 0
    store.close()


def test_threads_take_different_numbers(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s.db")
    taken: list[int] = []
    threads = [threading.Thread(target=lambda: taken.append(next_version(store, "x"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 9))
    store.close()


def test_processes_that_open_one_new_file_at_once(tmp_path: Path) -> None:
    code = "import sys; from tuneloop.registry.store import open_store; print(open_store(sys.argv[1]).version)"
    path = str(tmp_path / "s.db")
    processes = [subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) for _ in range(4)]
    answers = [p.communicate(timeout=60)[0].decode().strip() for p in processes]
    assert answers == [str(len(MIGRATIONS))] * 4


def test_retried_gives_up_with_a_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "s.db")
    monkeypatch.setattr(stores, "ATTEMPTS", 2)
    tries = []

    def always_the_same(connection: Connection) -> None:
        tries.append(1)
        connection.execute(insert(versions).values(**row("x", 1)))
        connection.execute(insert(versions).values(**row("x", 1)))

    with pytest.raises(RunError) as caught:
        store.retried(always_the_same)
    assert caught.value.code == "TL-RUN-STORE-BUSY"
    assert len(tries) == 2
    store.close()


def test_the_statements_are_postgresql_too() -> None:
    dialect = postgresql.dialect()
    for table in metadata.sorted_tables:
        assert str(CreateTable(table).compile(dialect=dialect))
    assert "versions" in str(select(versions).compile(dialect=dialect))


def test_postgresql() -> None:
    """The same store on a server, where the environment names one (TUNELOOP_TEST_POSTGRES=postgresql://…)."""
    url = os.environ.get("TUNELOOP_TEST_POSTGRES")
    if not url:
        pytest.skip("TUNELOOP_TEST_POSTGRES names no server")
    store, name = open_store(url), f"n{uuid.uuid4().hex[:8]}"
    taken: list[int] = []
    threads = [threading.Thread(target=lambda: taken.append(next_version(store, name))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 7))
    assert store.version == len(MIGRATIONS)
    with pytest.raises(IntegrityError), store.write() as connection:
        connection.execute(insert(aliases).values(name=name, alias="production", version=99))
    store.close()
