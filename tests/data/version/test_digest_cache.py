"""A file is read once for its sha256, and again as soon as it may have changed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneloop.base.files import sha256_of
from tuneloop.data.version import digest_cache
from tuneloop.data.version.digest_cache import DigestCache


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read, in order."""
    out: list[str] = []

    def counted(path: Path) -> str:
        out.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(digest_cache, "sha256_of", counted)
    return out


def settled(monkeypatch: pytest.MonkeyPatch, seconds: float = 10) -> None:
    """Let time pass, so that files written just now are old."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + int(seconds * 1e9))


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_a_file_is_read_once(tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    path, memory = tmp_path / "a", tmp_path / "new" / "stamps.json"
    path.write_text("one")
    first = DigestCache(memory)
    wanted = {path: sha256_of(path)}
    assert first.digests([path]) == wanted
    first.keep()
    assert first.digests([path]) == wanted
    assert DigestCache(memory).digests([path]) == wanted
    assert read == ["a"]


def test_nothing_is_known_that_was_not_kept(tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    (tmp_path / "a").write_text("one")
    DigestCache(tmp_path / "s").digests([tmp_path / "a"])
    DigestCache(tmp_path / "s").digests([tmp_path / "a"])
    assert read == ["a", "a"]


def _same_size(path: Path) -> None:
    path.write_text("two")


def _old_time(path: Path) -> None:
    stat = path.stat()
    path.write_text("two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _another_file(path: Path) -> None:
    stat = path.stat()
    other = path.with_name("other")
    other.write_text("two")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(other, path)


@pytest.mark.parametrize("change", [_same_size, _old_time, _another_file])
def test_a_change_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]) -> None:
    settled(monkeypatch)
    path = tmp_path / "a"
    path.write_text("one")
    memory = DigestCache(tmp_path / "s")
    memory.digests([path])
    memory.keep()
    time.sleep(0.02)
    change(path)
    assert DigestCache(tmp_path / "s").digests([path]) == {path: hashlib.sha256(b"two").hexdigest()}


def test_a_file_of_just_now_is_not_trusted(tmp_path: Path, read: list[str]) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    memory = DigestCache(tmp_path / "s")
    memory.digests([path])
    memory.keep()
    memory.digests([path])
    assert read == ["a", "a"]
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"PATH": 3}', '{"PATH": []}', '{"PATH": [1, 2, 3, 4]}', "\udcff"]
)
def test_a_broken_memory_is_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    settled(monkeypatch)
    path, memory = tmp_path / "a", tmp_path / "s"
    path.write_text("one")
    memory.write_bytes(content.replace("PATH", os.path.realpath(path)).encode("utf-8", "surrogateescape"))
    known = DigestCache(memory)
    assert known.digests([path]) == {path: sha256_of(path)}
    known.keep()
    assert json.loads(memory.read_text("utf-8"))[os.path.realpath(path)][-1] == sha256_of(path)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_memory_that_cannot_be_written_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    (tmp_path / "a").write_text("one")
    (tmp_path / "file").write_text("")
    memory = DigestCache(tmp_path / "file" / "s")
    memory.digests([tmp_path / "a"])
    memory.keep()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        DigestCache(tmp_path / "s").digests([tmp_path / "none"])
