"""Users are known by an HMAC under a secret that a workspace has once."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from tuneloop.base.errors import RunError
from tuneloop.improvement.users import SECRET_FILE, user_hashes


def test_processes_that_make_the_secret_at_once_have_one(tmp_path: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(user_hashes(tmp_path).of("x"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [SECRET_FILE]
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / SECRET_FILE).stat().st_mode) == 0o600


def test_a_secret_that_is_damaged_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / SECRET_FILE).write_text("short", encoding="utf-8")
    with pytest.raises(RunError, match="TL-RUN-SECRET"):
        user_hashes(tmp_path)
    assert (tmp_path / SECRET_FILE).read_text(encoding="utf-8") == "short"


def test_several_machines_may_share_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_USER_SECRET", "s" * 32)
    one, two = user_hashes(tmp_path / "a").of("x"), user_hashes(tmp_path / "b").of("x")
    assert one == two
    assert not list(tmp_path.iterdir())
