"""API keys in the store: 256 random bits, shown once; the store has their SHA-256 alone.

A key reads "tl-ID-SECRET". The id is public: lists, logs and limits go by it. The secret has as many bits as its hash,
so that no salt and no slow hash is needed: there are no words to try.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, select, update

from tuneloop.base.errors import ServeError
from tuneloop.base.language import listed
from tuneloop.registry.store import Store, api_keys, now
from tuneloop.serving.access.gcra import RateLimits
from tuneloop.serving.access.scopes import ALL, SCOPES, USUAL

PREFIX = "tl-"
MOST_NAMES = 20
"""Names in an error."""
_NAME = re.compile(r"\w[\w .@-]{0,63}")
_SPAN = re.compile(r"([1-9]\d{0,4})([hdw])")
_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the store has it. `expires` and `revoked` are times in UTC as ISO 8601, "" for never; `limits` are its
    own (None: those of the recipe)."""

    id: str
    name: str
    digest: str
    scopes: frozenset[str]
    created: str
    expires: str = ""
    revoked: str = ""
    requests: int | None = None
    tokens: int | None = None
    streams: int | None = None

    @property
    def state(self) -> str:
        """ "live", "expired" or "revoked"."""
        return "revoked" if self.revoked else "expired" if self.expires and self.expires <= now() else "live"

    def fits(self, key: str) -> bool:
        """Whether this is the key whose hash the store has; it takes as long whatever is wrong."""
        return hmac.compare_digest(digest_of(key), self.digest)

    def limits(self, defaults: RateLimits) -> RateLimits:
        """What it may use: its own limits, and where it has none those of the recipe."""
        own = ((self.requests, defaults.requests), (self.tokens, defaults.tokens), (self.streams, defaults.streams))
        return RateLimits(*(usual if mine is None else mine for mine, usual in own))

    def as_dict(self) -> dict[str, Any]:
        """For --json: everything but the hash."""
        names = ("id", "name", "created", "expires", "revoked", "state", "requests", "tokens", "streams")
        return {name: getattr(self, name) for name in names} | {"scopes": sorted(self.scopes)}


def digest_of(key: str) -> str:
    """SHA-256 of a key, as hexadecimal digits."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def id_of(key: str) -> str:
    """The public part of a key, "" for what is none.

    >>> id_of("tl-0a1b2c3d4e5f-Zm9v_-x"), id_of("sk-123")
    ('0a1b2c3d4e5f', '')
    """
    match = re.match(rf"{PREFIX}([0-9a-f]{{12}})-.", key)
    return match[1] if match else ""


def expiry(text: str) -> str:
    """When a key ends that is issued now: "90d", "12h", "8w", or a date "2027-01-31", which is its last day in UTC.

    Raises TL-SERVE-KEY-EXPIRY for anything else, and for a time that has passed.
    """
    if span := _SPAN.fullmatch(text.strip()):
        end = time.time() + int(span[1]) * _SECONDS[span[2]]
    else:
        try:
            end = datetime.strptime(text.strip(), "%Y-%m-%d").replace(tzinfo=UTC).timestamp() + _SECONDS["d"]
        except ValueError:
            end = 0.0
    if not time.time() < end < 253_402_300_800:  # the year 10000
        raise ServeError("TL-SERVE-KEY-EXPIRY", where="--expires", got=text[:40])
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end))


def issue(
    store: Store,
    name: str,
    *,
    scopes: Sequence[str] = (),
    expires: str = "",
    own: tuple[int | None, int | None, int | None] = (None, None, None),
    another: bool = False,
) -> tuple[ApiKey, str]:
    """Make a key and write its hash down; with it the key itself, which nobody can read again.

    `own` are its own limits: requests and tokens a minute, answers at the same time. Keys of one name share answers in
    the cache and records, so a name that a live key has is refused unless `another` is meant. Raises
    TL-SERVE-KEY-NAME, TL-SERVE-KEY-TAKEN, TL-SERVE-KEY-SCOPE.
    """
    if not _NAME.fullmatch(name):
        raise ServeError("TL-SERVE-KEY-NAME", where="NAME", got=name[:80])
    for scope in scopes:
        if scope not in (*SCOPES, ALL):
            raise ServeError("TL-SERVE-KEY-SCOPE", where="--scope", got=scope[:40], known=listed([*SCOPES, ALL]))
    identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    key = f"{PREFIX}{identity}-{secret}"
    issued = ApiKey(identity, name, digest_of(key), frozenset(scopes or USUAL), now(), expires, "", *own)

    def work(connection: Connection) -> None:
        live = [one for one in _read(connection) if one.name == name and one.state == "live"]
        if live and not another:
            raise ServeError("TL-SERVE-KEY-TAKEN", where=name, name=name, id=live[0].id)
        connection.execute(api_keys.insert().values(**_row(issued)))

    store.retried(work)
    return issued, key


def all_keys(store: Store) -> list[ApiKey]:
    """Every key that was issued, the oldest first; those that have ended among them."""
    with store.read() as connection:
        return _read(connection)


def revoke(store: Store, ref: str) -> list[ApiKey]:
    """End the key of an id, or all keys of a name, for ever. Raises TL-SERVE-KEY-UNKNOWN where there is none."""

    def work(connection: Connection) -> list[ApiKey]:
        every = _read(connection)
        meant = [one for one in every if one.state != "revoked" and ref in (one.id, one.name)]
        meant = [one for one in meant if one.id == ref] or meant
        if not meant:
            names = dict.fromkeys(one.name for one in every if one.state != "revoked")
            known = listed([*names][:MOST_NAMES]) or "–"
            raise ServeError("TL-SERVE-KEY-UNKNOWN", where=ref[:80], got=ref[:80], known=known)
        ids = [one.id for one in meant]
        connection.execute(update(api_keys).where(api_keys.c.id.in_(ids)).values(revoked=now()))
        return [one for one in _read(connection) if one.id in ids]

    return store.retried(work)


def _read(connection: Connection) -> list[ApiKey]:
    rows = connection.execute(select(api_keys).order_by(api_keys.c.created, api_keys.c.id)).mappings()
    return [ApiKey(**{**row, "scopes": frozenset(row["scopes"].split())}) for row in rows]


def _row(key: ApiKey) -> dict[str, Any]:
    names = ("id", "name", "digest", "created", "expires", "revoked", "requests", "tokens", "streams")
    return {name: getattr(key, name) for name in names} | {"scopes": " ".join(sorted(key.scopes))}
