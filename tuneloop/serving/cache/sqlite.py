"""Answers in one SQLite file, which every process of a machine shares and which outlives them. It may be deleted."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tuneloop.base.errors import ServeError, os_words
from tuneloop.base.language import t
from tuneloop.serving.cache.answer_store import FORGOTTEN_SECONDS, OVERHEAD, Forgotten
from tuneloop.serving.cache.key import FORMAT

Outcome = TypeVar("Outcome")
FILE = Path("cache") / "answers.db"
"""In a workspace."""
BUSY_SECONDS = 5.0
USED_SECONDS = 60.0
"""An answer that was used so recently is not written again to say that it was used now."""
_SCHEMA = """
DROP TABLE IF EXISTS askers; DROP TABLE IF EXISTS answers; DROP TABLE IF EXISTS forgotten; DROP TABLE IF EXISTS totals;
CREATE TABLE answers (key TEXT PRIMARY KEY, answer BLOB NOT NULL, ends REAL NOT NULL, used REAL NOT NULL,
    size INTEGER NOT NULL);
CREATE INDEX answers_used ON answers (used);
CREATE INDEX answers_ends ON answers (ends);
CREATE TABLE askers (person TEXT NOT NULL, key TEXT NOT NULL REFERENCES answers ON DELETE CASCADE,
    PRIMARY KEY (person, key)) WITHOUT ROWID;
CREATE INDEX askers_key ON askers (key);
CREATE TABLE forgotten (tenant TEXT NOT NULL, person TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE totals (size INTEGER NOT NULL, count INTEGER NOT NULL);
INSERT INTO totals VALUES (0, 0);
CREATE TRIGGER answer_added AFTER INSERT ON answers BEGIN
    UPDATE totals SET size = size + new.size, count = count + 1; END;
CREATE TRIGGER answer_removed AFTER DELETE ON answers BEGIN
    UPDATE totals SET size = size - old.size, count = count - 1; END;
"""


class SqliteAnswers:
    """An AnswerStore of at most `most` bytes in the file `path`. What is removed is overwritten (secure_delete).

    One thread has the connection, so the event loop waits for no disk. Raises TL-SERVE-CACHE where the file cannot be
    opened.
    """

    def __init__(self, path: Path, most: int) -> None:
        self._path, self._most = path, most
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tuneloop-cache")
        self.size = self.count = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._thread.submit(self._opened).result()
        except (sqlite3.Error, OSError) as error:
            self._thread.shutdown()
            raise ServeError("TL-SERVE-CACHE", where=str(path), error=os_words(error)) from error

    async def get(self, key: str, people: Iterable[str]) -> bytes | None:
        return await self._aside(lambda: self._get(key, frozenset(people)))

    async def put(self, key: str, answer: bytes, people: Iterable[str], seconds: float, began: float) -> None:
        await self._aside(lambda: self._put(key, answer, frozenset(people), seconds, began))

    async def forget(self, tenant: str, person: str) -> int:
        return await self._aside(lambda: self._forget(tenant, person))

    async def close(self) -> None:
        await self._aside(self._connection.close)
        self._thread.shutdown()

    async def _aside(self, work: Callable[[], Outcome]) -> Outcome:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # What follows runs in the thread.

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            for pragma in ("foreign_keys = ON", "secure_delete = ON", "journal_mode = WAL", "synchronous = NORMAL"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("PRAGMA user_version").fetchone() != (FORMAT,):
                for statement in _statements(_SCHEMA):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {FORMAT}")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            # A full disk may fail the commit itself, which leaves the transaction and its lock, or end both.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _get(self, key: str, people: frozenset[str]) -> bytes | None:
        now = time.time()
        row = self._connection.execute(
            "SELECT answer, used FROM answers WHERE key = ? AND ends > ?", (key, now)
        ).fetchone()
        if row is None:
            return None
        answer, used = row
        known = self._connection.execute("SELECT person FROM askers WHERE key = ?", (key,)).fetchall()
        new = people - {person for (person,) in known}
        if new or used < now - USED_SECONDS:
            with self._writing() as connection:
                # It may have been forgotten a moment ago.
                if not connection.execute("UPDATE answers SET used = ? WHERE key = ?", (now, key)).rowcount:
                    return None
                connection.executemany("INSERT OR IGNORE INTO askers VALUES (?, ?)", [(one, key) for one in new])
        return bytes(answer)

    def _put(self, key: str, answer: bytes, people: frozenset[str], seconds: float, began: float) -> None:
        now, needed = time.time(), len(answer) + OVERHEAD
        if needed > self._most:
            return
        with self._writing() as connection:
            connection.execute("DELETE FROM forgotten WHERE at < ?", (now - FORGOTTEN_SECONDS,))
            forgotten = connection.execute("SELECT tenant, person, at FROM forgotten").fetchall()
            if any(Forgotten(*row).covers(key, people, began) for row in forgotten):
                return
            connection.execute("DELETE FROM answers WHERE key = ? OR ends <= ?", (key, now))
            while self._totals(connection)[0] + needed > self._most:
                connection.execute("DELETE FROM answers WHERE key IN (SELECT key FROM answers ORDER BY used LIMIT 16)")
            row = (key, answer, now + seconds, now, needed)
            connection.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?)", row)
            connection.executemany("INSERT INTO askers VALUES (?, ?)", [(one, key) for one in people])
            self.size, self.count = self._totals(connection)

    def _totals(self, connection: sqlite3.Connection) -> tuple[int, int]:
        size, count = connection.execute("SELECT size, count FROM totals").fetchone()
        return int(size), int(count)

    def _forget(self, tenant: str, person: str) -> int:
        now = time.time()
        with self._writing() as connection:
            connection.execute("INSERT INTO forgotten VALUES (?, ?, ?)", (tenant, person, now))
            removed = connection.execute(
                "DELETE FROM answers WHERE (:tenant = '' OR substr(key, 1, instr(key, ':') - 1) = :tenant) "
                "AND (:person = '' OR key IN (SELECT key FROM askers WHERE person = :person))",
                {"tenant": tenant, "person": person},
            ).rowcount
            self.size, self.count = self._totals(connection)
        # The log of writes holds older pages until it is taken over; readers of other processes may be in the way.
        end = time.monotonic() + BUSY_SECONDS
        while self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if time.monotonic() > end:
                error = t("others are reading it, so removed bytes are still in its log; do it again")
                raise ServeError("TL-SERVE-CACHE", where=str(self._path), error=error)
            time.sleep(0.01)
        return int(removed)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, those of a trigger's body with it."""
    statement = ""
    for piece in script.split(";"):
        statement += f"{piece};"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
