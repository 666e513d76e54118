"""Who a record is about: the user of a request, as an HMAC that nobody without the workspace's secret can compute."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from tuneloop.base import refusals
from tuneloop.base.environment import environment
from tuneloop.base.errors import RunError, os_words

SECRET_FILE = "users.secret"
"""The workspace's secret: 64 hex digits that only its owner may read."""


class UserHashes:
    """HMAC-SHA256 of users' names under one secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def of(self, user: str) -> str:
        """64 hex digits; "" for nobody.

        >>> UserHashes(b"s").of("li")[:8], UserHashes(b"t").of("li")[:8], UserHashes(b"s").of("")
        ('ab2b3364', '0f9ed30b', '')
        """
        if not user:
            return ""
        return hmac.new(self._secret, user.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def key(self, purpose: str) -> bytes:
        """A secret of its own for others who hash users' names.

        >>> UserHashes(b"s").key("cache") == UserHashes(b"s").key("else"), len(UserHashes(b"s").key("cache"))
        (False, 32)
        """
        return hmac.new(self._secret, b"key " + purpose.encode(), hashlib.sha256).digest()


def has_secret(workspace: Path) -> bool:
    """Whether there is a secret yet: without one nothing was stored of anybody."""
    return bool(environment().user_secret) or (workspace / SECRET_FILE).exists()


def user_hashes(workspace: Path) -> UserHashes:
    """Those of a workspace: by TUNELOOP_USER_SECRET where it is set, else by the secret in its file, which is made at
    the first use. Raises TL-RUN-SECRET for a file that holds none."""
    if given := environment().user_secret:
        return UserHashes(given.encode())
    path = workspace / SECRET_FILE
    if not path.exists():
        _make(path)
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError("TL-RUN-SECRET", where=str(path), error=os_words(error)) from error
    if len(secret) < 32:
        raise RunError("TL-RUN-SECRET", where=str(path), error="< 32")
    return UserHashes(secret.encode())


def _make(path: Path) -> None:
    """Write a new secret whole under a name of its own, then give it the name: of several processes the first wins."""
    with refusals.writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(handle, secrets.token_hex(32).encode() + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)
        try:
            with suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()
