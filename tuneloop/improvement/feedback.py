"""Feedback: what a user thought of a reply, and what the answer should have been."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, and_, delete, insert, select

from tuneloop.registry.store import Store, feedback, replies


@dataclass(frozen=True, slots=True)
class Feedback:
    """One user's word on one answer. `reply` is a completion's id, `choice` the number of the answer in it."""

    tenant: str
    reply: str
    choice: int
    user_hash: str
    created: int
    key_id: str
    thumb: str
    """"up", "down" or ""."""
    score: float | None
    """From 0 to 1."""
    correction: str


def put_feedback(connection: Connection, word: Feedback) -> None:
    """Write feedback down, in place of what the same user said of the same answer before."""
    same = [feedback.c[name] == getattr(word, name) for name in ("tenant", "reply", "choice", "user_hash")]
    connection.execute(delete(feedback).where(*same))
    connection.execute(insert(feedback).values(**asdict(word)))


def asker_of(connection: Connection, reply: str, tenant: str) -> str | None:
    """The user (hash) whose question a kept reply answers; None where it was not kept, or for another tenant."""
    query = select(replies.c.user_hash).where(and_(replies.c.id == reply, replies.c.tenant == tenant))
    return connection.execute(query).scalars().first()


def all_feedback(store: Store, **equal: str) -> Iterator[Feedback]:
    """Feedback whose columns equal what is given, the oldest first."""
    query = select(feedback).where(*(feedback.c[name] == word for name, word in equal.items()))
    with store.read() as connection:
        for row in connection.execute(query.order_by(feedback.c.created, feedback.c.reply)).mappings():
            yield Feedback(**row)
