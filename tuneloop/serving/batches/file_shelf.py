"""Files of batches in the store: uploaded ones and those that batches wrote, a row a line."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from sqlalchemy import Connection, and_, delete, func, insert, select

from tuneloop.base.errors import ServeError
from tuneloop.improvement.archive import Archive
from tuneloop.registry.store import file_lines, files
from tuneloop.serving.admission import Caller

AT_ONCE = 200
"""Lines that are written or read at a time."""
MOST_LINE = 8 << 20
"""Bytes of a line: what a request may have. A tree of JSON takes many times its bytes in memory."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as it is listed. `size` is in bytes, `created` in seconds since 1970."""

    id: str
    created: int
    filename: str
    purpose: str
    size: int


class FileShelf:
    """The files of all tenants; each sees its own. Every call blocks on the database."""

    def __init__(self, archive: Archive, most_bytes: int) -> None:
        self._archive, self._most = archive, most_bytes

    def put(self, content: BinaryIO, size: int, filename: str, purpose: str, caller: Caller) -> StoredFile:
        """Store an uploaded file whole. Raises TL-SERVE-FILE for what is no text, TL-SERVE-LINE for a line longer than
        any request, TL-SERVE-STORAGE beyond the room that a tenant has."""
        owner = self._archive.users.of(caller.name)
        stored = StoredFile(new_id("file"), int(time.time()), filename, purpose, size)

        def work(connection: Connection) -> None:
            used = connection.execute(select(func.sum(files.c.size)).where(files.c.tenant == caller.tenant)).scalar()
            if (used or 0) + size > self._most:
                raise ServeError("TL-SERVE-STORAGE", status=413, most=self._most, used=int(used or 0), param="file")
            put_file(connection, stored, caller, owner)
            numbered = enumerate(iter(lambda: content.readline(MOST_LINE + 1), b""), start=1)
            while page := list(islice(numbered, AT_ONCE)):
                connection.execute(insert(file_lines), [self._line(stored.id, *one, owner) for one in page])

        with self._archive.store.write() as connection:
            work(connection)
        return stored

    def _line(self, file: str, number: int, line: bytes, owner: str) -> dict[str, Any]:
        if len(line) > MOST_LINE:
            raise ServeError("TL-SERVE-LINE", status=400, line=number, most=MOST_LINE, param="file")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ServeError("TL-SERVE-FILE", status=400, line=number, param="file") from error
        if "\0" in text:
            raise ServeError("TL-SERVE-FILE", status=400, line=number, param="file")
        return {"file": file, "number": number, "user_hash": self.user_of(text) or owner, "content": text}

    def user_of(self, line: str) -> str:
        """The user (hash) that the request of a line names; "" where it names none."""
        return self._archive.users.of(user_named(line))

    def find(self, file: str, caller: Caller) -> StoredFile:
        """Raises TL-SERVE-NO-FILE for one that is not there, or another tenant's."""
        with self._archive.store.read() as connection:
            row = connection.execute(select(files).where(_own(file, caller))).mappings().first()
        if row is None:
            raise missing(file)
        return _stored(row)

    def all_of(self, caller: Caller, *, purpose: str = "", after: str = "", limit: int = 100) -> list[StoredFile]:
        """The tenant's files, the newest first, those behind `after`."""
        query = select(files).where(files.c.tenant == caller.tenant)
        if purpose:
            query = query.where(files.c.purpose == storable(purpose))
        with self._archive.store.read() as connection:
            if after:
                row = connection.execute(select(files.c.created).where(_own(after, caller))).scalar()
                if row is None:
                    raise missing(after)
                older = and_(files.c.created == row, files.c.id < storable(after))
                query = query.where((files.c.created < row) | older)
            rows = connection.execute(query.order_by(files.c.created.desc(), files.c.id.desc()).limit(limit))
            return [_stored(one) for one in rows.mappings()]

    def content(self, file: str, caller: Caller) -> Iterator[bytes]:
        """The bytes of a file, part by part. Raises TL-SERVE-NO-FILE before the first one is asked for."""
        self.find(file, caller)
        return self._parts(file)

    def _parts(self, file: str) -> Iterator[bytes]:
        last = -1
        while True:
            query = select(file_lines.c.number, file_lines.c.content).where(
                file_lines.c.file == file, file_lines.c.number > last
            )
            with self._archive.store.read() as connection:
                rows = connection.execute(query.order_by(file_lines.c.number).limit(AT_ONCE)).all()
            if not rows:
                return
            last = rows[-1][0]
            yield "".join(content for _, content in rows).encode()

    def delete(self, file: str, caller: Caller) -> None:
        """Remove a file. Raises TL-SERVE-NO-FILE."""
        with self._archive.store.write() as connection:
            if not connection.execute(delete(files).where(_own(file, caller))).rowcount:
                raise missing(file)
            connection.execute(delete(file_lines).where(file_lines.c.file == file))


def put_file(connection: Connection, stored: StoredFile, caller: Caller, owner: str) -> None:
    """The row of a file, whose lines are or will be there."""
    columns = {name: getattr(stored, name) for name in StoredFile.__slots__}
    connection.execute(insert(files).values(**columns, tenant=caller.tenant, key_id=caller.id, user_hash=owner))


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(16)}" if prefix == "file" else f"{prefix}_{secrets.token_hex(16)}"


def user_named(line: str) -> str:
    """Whom a line of a batch's file is about: its body's safety_identifier, else its user.

    >>> user_named('{"custom_id": "1", "body": {"user": "li"}}'), user_named("[]"), user_named("x")
    ('li', '', '')
    """
    try:
        request = json.loads(line.removeprefix("\ufeff"))  # which editors put before the first line
    except (ValueError, RecursionError):
        return ""
    body = request.get("body") if isinstance(request, dict) else None
    if not isinstance(body, dict):
        return ""
    return next((name for key in ("safety_identifier", "user") if isinstance(name := body.get(key), str) and name), "")


def storable(text: str) -> str:
    """A text as any database takes it: PostgreSQL refuses NUL, where SQLite says that there is no such row.

    >>> storable("file-\\0")
    'file-�'
    """
    return text.replace("\0", "\ufffd")


def missing(file: str) -> ServeError:
    return ServeError("TL-SERVE-NO-FILE", status=404, got=file[:100], param="file")


def _own(file: str, caller: Caller) -> Any:
    return and_(files.c.id == storable(file), files.c.tenant == caller.tenant)


def _stored(row: Any) -> StoredFile:
    return StoredFile(**{name: row[name] for name in StoredFile.__slots__})
