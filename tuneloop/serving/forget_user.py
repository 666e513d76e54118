"""Forgets one person: replies, feedback and batches in the store, answers in the cache. Logs know neither texts nor
users."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path

from tuneloop.base.errors import ServeError
from tuneloop.improvement.archive import Archive
from tuneloop.improvement.forgetting import forget_rows
from tuneloop.improvement.users import has_secret
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.cache.cache import forget
from tuneloop.serving.settings import serve_settings


def forget_user(user: str, *, workspace: Path = Path(), tenant: str = "", ref: str = "") -> dict[str, int]:
    """Remove what is kept of a user, whom requests name as `user` or `safety_identifier`, else of whoever has the key
    of that name: how much of each kind there was. `tenant` leaves it at the requests of one key; `ref` is what is
    served, where its recipe names a Redis.

    No byte of it is left in the database's files afterwards. Running servers are told. Raises TL-SERVE-FORGET-NOBODY
    for an empty name, and what the stores raise.
    """
    if not user:
        raise ServeError("TL-SERVE-FORGET-NOBODY", where="--user")
    settings = serve_settings(ref, workspace) if ref else ServePart()
    archive = Archive(workspace)
    counts = dict.fromkeys(("replies", "feedback", "files", "lines", "batches"), 0)
    try:
        if archive.exists:
            counts = asdict(forget_rows(archive.store, archive.users.of(user), tenant or None))
            archive.store.scrub()
    finally:
        archive.close()
    cached = 0
    if has_secret(workspace):
        secret = archive.users.key("cache")
        cached = asyncio.run(forget(settings, workspace, tenant=tenant, user=user, secret=secret))
    return counts | {"cached": cached}
