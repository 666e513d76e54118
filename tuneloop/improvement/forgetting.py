"""Removes what the store knows of one person: replies, feedback, and lines of batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, and_, delete, func, insert, or_, select, true, update

from tuneloop.registry.store import Store, batches, feedback, file_lines, files, forgotten, replies

AT_ONCE = 200
"""Lines that are read at a time."""
REMEMBERED = 2 * 86_400
"""Seconds for which servers are told whom to forget: longer than any request is under way."""


@dataclass(frozen=True, slots=True)
class Removed:
    """How much of one person was removed."""

    replies: int
    feedback: int
    files: int
    lines: int
    batches: int

    @property
    def total(self) -> int:
        return self.replies + self.feedback + self.files + self.lines + self.batches


def forget_rows(store: Store, user_hash: str, tenant: str | None = None) -> Removed:
    """Delete a person's rows, and leave word for servers that have some of them in hand; of one tenant, or of all.

    The bytes are gone from the database's files after `Store.scrub`.
    """

    def work(connection: Connection) -> Removed:
        now = time.time()
        connection.execute(delete(forgotten).where(forgotten.c.at < now - REMEMBERED))
        same = and_(forgotten.c.user_hash == user_hash, forgotten.c.tenant == (tenant or ""))
        connection.execute(delete(forgotten).where(same))
        connection.execute(insert(forgotten).values(user_hash=user_hash, tenant=tenant or "", at=now))
        theirs = _of(replies, user_hash, tenant)
        about = and_(feedback.c.reply.in_(select(replies.c.id).where(theirs)), _within(feedback, tenant))
        votes = connection.execute(delete(feedback).where(or_(_of(feedback, user_hash, tenant), about))).rowcount
        answered = connection.execute(delete(replies).where(theirs)).rowcount
        return Removed(answered, votes, *_forget_files(connection, user_hash, tenant))

    return store.retried(work)


def _forget_files(connection: Connection, user_hash: str, tenant: str | None) -> tuple[int, int, int]:
    """A person's lines; the files that they sent, or that held nothing else; and the batches of these."""
    of_tenant = select(files.c.id).where(_within(files, tenant))
    within = true() if tenant is None else file_lines.c.file.in_(_lines_of_batches(of_tenant, tenant))
    lines_of_theirs = and_(file_lines.c.user_hash == user_hash, within)
    touched = list(connection.execute(select(file_lines.c.file).where(lines_of_theirs).distinct()).scalars())
    lines = connection.execute(delete(file_lines).where(lines_of_theirs)).rowcount
    sent = list(connection.execute(select(files.c.id).where(_of(files, user_hash, tenant))).scalars())
    gone = set(sent)
    for file in touched:
        size = select(func.sum(func.length(file_lines.c.content))).where(file_lines.c.file == file)
        if connection.execute(size).scalar() is None:
            gone.add(file)
        else:
            connection.execute(update(files).where(files.c.id == file).values(size=_size(connection, file)))
    of_gone = [batches.c.input_file.in_(gone), _of(batches, user_hash, tenant)]
    ended = connection.execute(select(batches).where(or_(*of_gone))).mappings().all()
    gone |= {row[name] for row in ended for name in ("output_file", "error_file") if row["input_file"] in gone}
    lines += connection.execute(delete(file_lines).where(file_lines.c.file.in_(gone))).rowcount
    removed = connection.execute(delete(files).where(files.c.id.in_(gone))).rowcount
    jobs = connection.execute(delete(batches).where(batches.c.id.in_([row["id"] for row in ended]))).rowcount
    return removed, lines, jobs


def _lines_of_batches(of_tenant: Select[Any], tenant: str | None) -> Any:
    """Files of a tenant, those that are being written counted: they have lines before they have a row."""
    within = _within(batches, tenant)
    written = [select(column).where(within) for column in (batches.c.output_file, batches.c.error_file)]
    return of_tenant.union(*written)


def _size(connection: Connection, file: str) -> int:
    """Bytes of a file in UTF-8."""
    query = select(file_lines.c.content).where(file_lines.c.file == file).execution_options(yield_per=AT_ONCE)
    lines = connection.execute(query).scalars()
    return sum(len(line.encode()) for line in lines)


def _within(table: Table, tenant: str | None) -> ColumnElement[bool]:
    return true() if tenant is None else table.c.tenant == tenant


def _of(table: Table, user_hash: str, tenant: str | None) -> ColumnElement[bool]:
    return and_(table.c.user_hash == user_hash, _within(table, tenant))


def forgotten_since(connection: Connection) -> Callable[[str, str], float]:
    """When a user (hash) of a tenant was forgotten, in seconds since 1970; -1 for all others."""
    rows = connection.execute(select(forgotten.c.user_hash, forgotten.c.tenant, forgotten.c.at)).all()
    known = {(user, tenant): at for user, tenant, at in rows}
    return lambda user, tenant: max(known.get((user, tenant), -1.0), known.get((user, ""), -1.0))
