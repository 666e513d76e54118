"""The store: the tables that outlive a run. SQLite by default, PostgreSQL by URL, through the same statements.

The tables are made by numbered migrations, applied in order inside one transaction; `schema_version` says which have
been. A migration that has been released is never edited: the next one changes what it made. What the rows mean is the
business of the rooms that write them; this file knows no model and no run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.pool import QueuePool

from tuneloop.base import refusals
from tuneloop.base.errors import MachineError, RunError
from tuneloop.base.optional import install, need
from tuneloop.registry.migrations import MIGRATIONS

T = TypeVar("T")

BUSY_SECONDS = 30
"""How long a writer waits for another one before TL-RUN-STORE-BUSY."""
FILE = "tuneloop.db"
"""The SQLite file of a workspace."""
ATTEMPTS = 8
_MIGRATION_LOCK = 7_251_001  # any number, the same in every process: PostgreSQL's advisory lock of the migrations

metadata = MetaData()
schema_version = Table(
    "schema_version",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("applied", String(32), nullable=False),
)
versions = Table(
    "versions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("version", Integer, nullable=False),
    Column("run", Text, nullable=False),
    Column("base_model", Text, nullable=False),
    Column("base_revision", Text, nullable=False),
    Column("dataset_hash", String(64), nullable=False),
    Column("method", String(64), nullable=False),
    Column("created", String(32), nullable=False),
    Column("metrics", Text, nullable=False),
    Column("files", Text, nullable=False),
    UniqueConstraint("name", "version", name="versions_name_version"),
)
aliases = Table(
    "aliases",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("alias", String(128), primary_key=True),
    Column("version", Integer, nullable=False),
)

rated_pairs = Table(
    "rated_pairs",
    metadata,
    Column("study", Text, primary_key=True),
    Column("pair", String(64), primary_key=True),
    Column("context", Text, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("model_first", Text, nullable=False),
    Column("model_second", Text, nullable=False),
    Column("answer_first", Text, nullable=False),
    Column("answer_second", Text, nullable=False),
    Column("gold", String(16), nullable=False),
)
ratings = Table(
    "ratings",
    metadata,
    Column("study", Text, primary_key=True),
    Column("pair", String(64), primary_key=True),
    Column("rater", String(64), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("model_a", Text, nullable=False),
    Column("model_b", Text, nullable=False),
    Column("choice", String(16), nullable=False),
    *(
        Column(f"{name}_{side}", Integer, nullable=True)
        for side in ("a", "b")
        for name in ("relevance", "fluency", "informativeness")
    ),
    *(Column(f"safety_{side}", String(8), nullable=True) for side in ("a", "b")),
    *(Column(f"safety_reason_{side}", Text, nullable=False) for side in ("a", "b")),
    Column("rated", String(32), nullable=False),
)
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created", String(32), nullable=False),
    Column("expires", String(32), nullable=False),
    Column("revoked", String(32), nullable=False),
    *(Column(name, Integer, nullable=True) for name in ("requests", "tokens", "streams")),
)

replies = Table(
    "replies",
    metadata,
    Column("id", String(96), primary_key=True),
    Column("prompt", Integer, primary_key=True),
    Column("created", Integer, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("user_hash", String(64), nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("arm", Text, nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("question", Text, nullable=False),
    Column("answers", Text, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("answer_tokens", Integer, nullable=False),
)
feedback = Table(
    "feedback",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("reply", String(96), primary_key=True),
    Column("choice", Integer, primary_key=True),
    Column("user_hash", String(64), primary_key=True),
    Column("created", Integer, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("thumb", String(8), nullable=False),
    Column("score", Float, nullable=True),
    Column("correction", Text, nullable=False),
)
files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created", Integer, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("user_hash", String(64), nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("size", BigInteger, nullable=False),
)
file_lines = Table(
    "file_lines",
    metadata,
    Column("file", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("user_hash", String(64), nullable=False),
    Column("content", Text, nullable=False),
)
batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created", Integer, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("user_hash", String(64), nullable=False),
    Column("caller", Text, nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("input_file", String(64), nullable=False),
    Column("output_file", String(64), nullable=False),
    Column("error_file", String(64), nullable=False),
    Column("notes", Text, nullable=False),
    Column("errors", Text, nullable=False),
    Column("times", Text, nullable=False),
    Column("expires", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("owner", String(64), nullable=False),
    Column("lease", Float, nullable=False),
)
forgotten = Table(
    "forgotten",
    metadata,
    Column("user_hash", String(64), primary_key=True),
    Column("tenant", Text, primary_key=True),
    Column("at", Float, nullable=False),
)


class Store:
    """An open database. One per process and database is enough; threads may share it. `folder` is that of a file."""

    def __init__(self, engine: Engine, where: str, folder: Path | None = None) -> None:
        self.engine = engine
        self.where = where
        self.folder = folder

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection whose statements see one state of the tables."""
        with self._coded(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: kept at the end of the block, undone when the block raises.

        SQLite takes its write lock at the start, so that what the block reads is still true when it writes.
        IntegrityError passes through: the caller knows what a conflict means (see `retried`).
        """
        with self._coded(), self.engine.connect() as connection:
            connection = connection.execution_options(tuneloop_write=True)
            with connection.begin():
                yield connection

    def retried(self, work: Callable[[Connection], T]) -> T:
        """`work` in a write transaction, again from its start when another process inserted the same key first."""
        for attempt in range(ATTEMPTS):
            try:
                with self.write() as connection:
                    return work(connection)
            except IntegrityError as error:
                if attempt == ATTEMPTS - 1:
                    raise RunError("TL-RUN-STORE-BUSY", where=self.where, error=_line(error)) from error
                time.sleep(random.uniform(0, 0.02 * 2**attempt))
        raise AssertionError("unreachable")

    @property
    def version(self) -> int:
        """The number of the last migration applied."""
        with self.read() as connection:
            return int(connection.execute(select(func.max(schema_version.c.number))).scalar_one() or 0)

    def scrub(self) -> None:
        """See to it that no byte of a deleted row is left in the database's files: SQLite's file and log are written
        anew, PostgreSQL's tables are. PostgreSQL's own log goes as its server recycles it.

        Raises TL-RUN-STORE-BUSY where others do not let go of the file.
        """
        with self._coded(), self.engine.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            if connection.dialect.name == "postgresql":
                for table in metadata.tables:
                    connection.execute(text(f"VACUUM FULL {table}"))
                return
        self._rewrite()

    def _rewrite(self) -> None:
        """VACUUM goes through the log; a log that is cut off holds nothing. Readers may stand in the way of the cut."""
        with self._coded():
            raw = self.engine.raw_connection()
            try:
                cursor = raw.cursor()
                cursor.execute("VACUUM")
                end = time.monotonic() + BUSY_SECONDS
                while cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                    if time.monotonic() > end:
                        raise RunError("TL-RUN-STORE-BUSY", where=self.where, error="wal_checkpoint")
                    time.sleep(0.05)
            finally:
                raw.close()

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _coded(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except DBAPIError as error:
            if self.folder:  # SQLite tells a full or closed folder in many words
                refusals.require_writable(self.folder)
            busy = isinstance(error, OperationalError) and "locked" in str(error.orig)
            code = "TL-RUN-STORE-BUSY" if busy else "TL-RUN-STORE"
            raise RunError(code, where=self.where, error=_line(error)) from error


def open_store(url_or_path: str | Path) -> Store:
    """Open a store, make its file if there is none, and bring its tables up to date.

    `url_or_path` is a file of SQLite, or a URL ("postgresql://…", needs the extra `postgres`). Raises TL-RUN-STORE for
    a database that cannot be opened, TL-RUN-STORE-NEWER for one that a later tuneloop has changed.
    """
    if isinstance(url_or_path, str) and "://" in url_or_path:
        store = _by_url(url_or_path)
    else:
        store = _by_path(Path(url_or_path))
    try:
        _migrate(store)
    except BaseException:
        store.close()
        raise
    return store


def _by_path(path: Path) -> Store:
    with refusals.writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine("sqlite://", creator=_connector(path), poolclass=QueuePool)
    _use_own_transactions(engine)
    return Store(engine, str(path), path.parent)


def _connector(path: Path) -> Callable[[], Any]:
    """Connections to one SQLite file. A path is passed as it is: a URL would misread `?` and `#` in a folder's name."""
    import sqlite3

    def connect() -> sqlite3.Connection:
        # No transaction of the driver's own making (isolation_level None): `_use_own_transactions` begins them.
        raw = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            raw.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
            raw.execute("PRAGMA foreign_keys = ON")
            raw.execute("PRAGMA synchronous = FULL")
            raw.execute("PRAGMA secure_delete = ON")
            _use_wal(raw)
        except BaseException:
            raw.close()
            raise
        return raw

    return connect


def _use_wal(raw: Any) -> None:
    """Readers do not wait for the writer. The change of mode ignores the busy timeout, so it is tried again by hand."""
    import sqlite3

    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            raw.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _use_own_transactions(engine: Engine) -> None:
    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("tuneloop_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _by_url(url: str) -> Store:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise RunError("TL-RUN-STORE-URL", where="store", got=url.partition("://")[0] + "://…") from error
    where = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        return _by_path(Path(parsed.database))
    if parsed.get_backend_name() != "postgresql":
        raise RunError("TL-RUN-STORE-URL", where="store", got=where)
    driver = "psycopg" if "+" not in parsed.drivername else parsed.drivername.partition("+")[2]
    if driver == "psycopg":
        need("psycopg", extra="postgres")
    try:
        # Serializable would fail whole transactions at random; unique keys and `retried` are all that is needed here.
        engine = create_engine(parsed.set(drivername=f"postgresql+{driver}"), pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise MachineError("TL-MACHINE-EXTRA", module=driver, command=install("postgres"), error=str(error)) from error
    return Store(engine, where)


def _migrate(store: Store) -> None:
    """Apply the migrations that are missing, all in one transaction that no other process can enter."""
    if _applied(store) == len(MIGRATIONS):
        return
    with store.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        if not inspect(connection).has_table("schema_version"):
            schema_version.create(connection)
        done = int(connection.execute(select(func.max(schema_version.c.number))).scalar_one() or 0)
        if done > len(MIGRATIONS):
            raise RunError("TL-RUN-STORE-NEWER", where=store.where, found=done, known=len(MIGRATIONS))
        for number, statements in enumerate(MIGRATIONS[done:], start=done + 1):
            for statement in statements:
                connection.execute(text(statement))
            connection.execute(schema_version.insert().values(number=number, applied=now()))


def _applied(store: Store) -> int:
    with store.read() as connection:
        if not inspect(connection).has_table("schema_version"):
            return 0
        return int(connection.execute(select(func.max(schema_version.c.number))).scalar_one() or 0)


def now() -> str:
    """The time in UTC as ISO 8601, whole seconds: "2026-01-31T12:00:00Z"."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _line(error: DBAPIError) -> str:
    """The driver's own words, without the statement and its parameters."""
    return " ".join(str(error.orig).split())
