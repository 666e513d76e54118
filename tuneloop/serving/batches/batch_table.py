"""Batches in the store: what is to be answered, how far it is, and which process has it in hand."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, insert, select, update

from tuneloop.base.errors import ServeError
from tuneloop.improvement.archive import Archive
from tuneloop.registry.store import batches, file_lines, files
from tuneloop.serving.admission import Caller
from tuneloop.serving.batches.file_shelf import AT_ONCE, StoredFile, missing, new_id, put_file, storable

WINDOW_SECONDS = 86_400
"""completion_window, of which there is one: 24h."""
LEASE_SECONDS = 10.0
"""How long a process has a batch without another word; after a crash another one takes it then."""
OPEN = ("validating", "in_progress", "finalizing", "cancelling")
"""States of batches that somebody must work on."""


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch as it is in the store."""

    id: str
    created: int
    tenant: str
    user_hash: str
    caller: Caller
    endpoint: str
    status: str
    input_file: str
    output_file: str
    error_file: str
    notes: Mapping[str, str] | None
    """Its `metadata`."""
    errors: Sequence[Mapping[str, Any]]
    """{"code", "message", "param", "line"}: why the input was refused."""
    times: Mapping[str, int]
    """"in_progress_at" and so on -> seconds since 1970."""
    expires: int
    total: int
    completed: int
    failed: int


class BatchTable:
    """The batches of all tenants; each sees its own. Every call blocks on the database."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def create(self, file: str, endpoint: str, notes: Mapping[str, str] | None, caller: Caller) -> StoredBatch:
        """Raises TL-SERVE-NO-FILE."""
        now = int(time.time())
        person = self._archive.users.of(caller.name)
        with self._archive.store.write() as connection:
            own = and_(files.c.id == file, files.c.tenant == caller.tenant, files.c.purpose == "batch")
            if connection.execute(select(files.c.id).where(own)).first() is None:
                raise missing(file)
            who = {"id": caller.id, "name": caller.name, "scopes": sorted(caller.scopes), "tenant": caller.tenant}
            row = {
                "id": new_id("batch"), "created": now, "tenant": caller.tenant, "user_hash": person,
                "caller": json.dumps(who), "endpoint": endpoint, "status": "validating", "input_file": file,
                "output_file": new_id("file"), "error_file": new_id("file"), "notes": json.dumps(notes),
                "errors": "[]", "times": "{}", "expires": now + WINDOW_SECONDS, "total": 0, "completed": 0,
                "failed": 0, "owner": "", "lease": 0.0,
            }  # fmt: skip
            connection.execute(insert(batches).values(**row))
        return as_batch(row)

    def find(self, batch: str, caller: Caller) -> StoredBatch:
        """Raises TL-SERVE-NO-BATCH for one that is not there, or another tenant's."""
        with self._archive.store.read() as connection:
            return _own_batch(connection, batch, caller)

    def all_of(self, caller: Caller, *, after: str = "", limit: int = 20) -> list[StoredBatch]:
        """The tenant's batches, the newest first, those behind `after`."""
        query = select(batches).where(batches.c.tenant == caller.tenant)
        with self._archive.store.read() as connection:
            if after:
                last = _own_batch(connection, after, caller)
                older = and_(batches.c.created == last.created, batches.c.id < storable(after))
                query = query.where((batches.c.created < last.created) | older)
            rows = connection.execute(query.order_by(batches.c.created.desc(), batches.c.id.desc()).limit(limit))
            return [as_batch(row) for row in rows.mappings()]

    def cancel(self, batch: str, caller: Caller) -> StoredBatch:
        """Ask for its end. Raises TL-SERVE-NO-BATCH, TL-SERVE-BATCH-ENDED."""
        with self._archive.store.write() as connection:
            batch_there = _own_batch(connection, batch, caller)
            if batch_there.status not in OPEN:
                raise ServeError("TL-SERVE-BATCH-ENDED", status=400, got=batch, state=batch_there.status)
            if batch_there.status not in ("cancelling", "finalizing"):
                times = json.dumps({**batch_there.times, "cancelling_at": int(time.time())})
                connection.execute(update(batches).where(_is(batch)).values(status="cancelling", times=times))
            return _own_batch(connection, batch, caller)


def claim(connection: Connection, owner: str, now: float, busy: Sequence[str] = ()) -> StoredBatch | None:
    """Take a batch that nobody works on, the oldest first, none of the tenants in `busy`; None where there is none."""
    free = and_(batches.c.status.in_(OPEN), batches.c.lease < now, batches.c.tenant.not_in(busy))
    query = select(batches.c.id).where(free).order_by(batches.c.created, batches.c.id).limit(1)
    batch = connection.execute(query).scalar()
    if batch is None:
        return None
    # Where another process was faster the condition does not hold any more.
    taken = update(batches).where(_is(batch), batches.c.lease < now).values(owner=owner, lease=now + LEASE_SECONDS)
    if not connection.execute(taken).rowcount:
        return None
    return as_batch(connection.execute(select(batches).where(_is(batch))).mappings().one())


def renew(connection: Connection, batch: str, owner: str, now: float) -> StoredBatch | None:
    """Go on with a batch; None where it was removed, or another process has it."""
    own = and_(_is(batch), batches.c.owner == owner)
    if not connection.execute(update(batches).where(own).values(lease=now + LEASE_SECONDS)).rowcount:
        return None
    return as_batch(connection.execute(select(batches).where(_is(batch))).mappings().one())


def release(connection: Connection, owner: str) -> None:
    """Let go of all batches of a process that ends."""
    connection.execute(update(batches).where(batches.c.owner == owner).values(owner="", lease=0.0))


def enter_state(connection: Connection, batch: StoredBatch, status: str, **columns: Any) -> None:
    """Give a batch another status, with the time of it."""
    times = {**_times(connection, batch.id), f"{status}_at": int(time.time())}
    columns = {name: json.dumps(one) if name == "errors" else one for name, one in columns.items()}
    changed = update(batches).where(_is(batch.id)).values(status=status, times=json.dumps(times), **columns)
    connection.execute(changed)


def put_answer(connection: Connection, batch: StoredBatch, owner: str, number: int, line: str, failed: bool) -> bool:
    """Write the answer of an input line down, once. False where the batch is not this process's any more.

    The answer to a line that was removed meanwhile is not written.
    """
    own = and_(_is(batch.id), batches.c.owner == owner)
    column = batches.c.failed if failed else batches.c.completed
    if not connection.execute(update(batches).where(own).values({column: column + 1})).rowcount:
        return False
    input_line = and_(file_lines.c.file == batch.input_file, file_lines.c.number == number)
    user = connection.execute(select(file_lines.c.user_hash).where(input_line)).scalar()
    if user is None:
        connection.execute(update(batches).where(own).values({column: column - 1}))
        return True
    file = batch.error_file if failed else batch.output_file
    connection.execute(insert(file_lines).values(file=file, number=number, user_hash=user, content=line))
    return True


def lines_left(connection: Connection, batch: StoredBatch, after: int, most: int) -> list[tuple[int, str]]:
    """Numbers and texts of input lines behind `after` that have no answer yet."""
    answered = file_lines.alias()
    done = select(answered.c.number).where(
        answered.c.file.in_([batch.output_file, batch.error_file]), answered.c.number == file_lines.c.number
    )
    query = select(file_lines.c.number, file_lines.c.content).where(
        file_lines.c.file == batch.input_file, file_lines.c.number > after, ~done.exists()
    )
    return [(number, text) for number, text in connection.execute(query.order_by(file_lines.c.number).limit(most))]


def close_batch(connection: Connection, batch: StoredBatch, status: str) -> None:
    """The end of a batch: its files become visible, where anything is in them."""
    for file, name in ((batch.output_file, "output"), (batch.error_file, "error")):
        query = select(file_lines.c.content).where(file_lines.c.file == file).execution_options(yield_per=AT_ONCE)
        lines = connection.execute(query).scalars()
        size = sum(len(line.encode()) for line in lines)
        if size:
            stored = StoredFile(file, int(time.time()), f"{batch.id}_{name}.jsonl", "batch_output", size)
            put_file(connection, stored, batch.caller, batch.user_hash)
    enter_state(connection, batch, status, owner="", lease=0.0)


def as_batch(row: Any) -> StoredBatch:
    """A row of the table as a batch."""
    columns = {name: row[name] for name in StoredBatch.__slots__}
    who = json.loads(row["caller"])
    columns["caller"] = Caller(who["id"], who["name"], frozenset(who["scopes"]), who["tenant"])
    return StoredBatch(**columns | {name: json.loads(row[name]) for name in ("notes", "errors", "times")})


def _own_batch(connection: Connection, batch: str, caller: Caller) -> StoredBatch:
    own = and_(_is(batch), batches.c.tenant == caller.tenant)
    row = connection.execute(select(batches).where(own)).mappings().first()
    if row is None:
        raise ServeError("TL-SERVE-NO-BATCH", status=404, got=batch[:100], param="batch_id")
    return as_batch(row)


def _times(connection: Connection, batch: str) -> dict[str, int]:
    times: dict[str, int] = json.loads(connection.execute(select(batches.c.times).where(_is(batch))).scalar() or "{}")
    return times


def _is(batch: str) -> Any:
    return batches.c.id == storable(batch)
