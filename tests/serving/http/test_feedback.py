"""POST /v1/feedback, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.recorded import FULL, USER, ask, serving, vote
from tests.serving.scripted import ScriptedEngine
from tuneloop.improvement.archive import Archive
from tuneloop.improvement.feedback import all_feedback
from tuneloop.improvement.users import user_hashes
from tuneloop.registry.store import FILE
from tuneloop.serving.batches.file_shelf import FileShelf


def test_feedback_is_in_the_store_before_it_is_said_to_be(place: str | Path, tmp_path: Path) -> None:
    with serving(ScriptedEngine(), tmp_path, FULL, place=place) as server:
        reply = ask(server, user=USER)["id"]
        answer = vote(server, {"id": reply, "thumb": "down", "score": 0.25, "correction": "ring 13812345678"})
        assert answer.json() == {"object": "feedback", "id": reply, "choice": 0, "stored": True}
        archive = Archive(tmp_path, place)
        (word,) = all_feedback(archive.store, reply=reply)
        assert (word.thumb, word.score, word.correction) == ("down", 0.25, "ring [MOBILE]")
        assert word.user_hash == user_hashes(tmp_path).of(USER), "it is the asker's where nobody else is named"
        vote(server, {"id": reply, "thumb": "up"})
        assert [one.thumb for one in all_feedback(archive.store)] == ["up"], "the last word counts"
        vote(server, {"id": reply, "thumb": "down", "user": "somebody else"})
        assert sorted(one.thumb for one in all_feedback(archive.store)) == ["down", "up"]
        archive.close()


def test_feedback_on_a_reply_of_another_tenant_is_not_tied_to_it(tmp_path: Path) -> None:
    with serving(ScriptedEngine(), tmp_path, FULL) as server:
        reply = ask(server, user=USER)["id"]
        assert vote(server, {"id": reply, "thumb": "up"}, caller="other").json()["stored"] is False
    archive = Archive(tmp_path)
    (word,) = all_feedback(archive.store)
    assert (word.tenant, word.user_hash) == ("other", user_hashes(tmp_path).of("other"))
    archive.close()


def test_feedback_needs_no_kept_reply(tmp_path: Path) -> None:
    with serving(ScriptedEngine(), tmp_path) as server:
        assert vote(server, {"id": "chatcmpl-0", "thumb": "up"}).json()["stored"] is False


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"id": "x"}, None),
        ({"thumb": "up"}, "id"),
        ({"id": "x", "thumb": "sideways"}, "thumb"),
        ({"id": "x", "score": 2}, "score"),
        ({"id": "x' OR 1=1 --", "thumb": "up"}, "id"),
        ({"id": "x", "thumb": "up", "stars": 5}, "stars"),
        ({"id": "x", "correction": "\ud800"}, "correction"),
        ({"id": "x", "correction": "x" * 100_001}, "correction"),
        ({"id": "x" * 97, "thumb": "up"}, "id"),
    ],
)
def test_wrong_feedback_is_refused(body: dict[str, Any], param: str | None, tmp_path: Path) -> None:
    with serving(ScriptedEngine(), tmp_path) as server:
        reply = vote(server, body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert not list(tmp_path.iterdir())


def test_a_store_that_is_away_is_said_to_be_and_no_more(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 100)
    with serving(ScriptedEngine(), tmp_path) as server:
        for reply in (
            vote(server, {"id": "chatcmpl-0", "thumb": "up"}),
            httpx.get(f"{server.url}/v1/files"),
            httpx.get(f"{server.url}/v1/batches/batch_0"),
        ):
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "TL-SERVE-STORE")
            assert "retry-after" in reply.headers
            assert str(tmp_path) not in reply.text


def test_a_nul_in_an_id_is_no_fault_of_the_store(place: str | Path, tmp_path: Path) -> None:
    with serving(ScriptedEngine(), tmp_path, place=place) as server:
        for path in ("/v1/files/%00", "/v1/files/%00/content", "/v1/batches/%00", "/v1/files?after=%00"):
            assert httpx.get(f"{server.url}{path}").status_code == 404, path
        assert httpx.get(f"{server.url}/v1/files?purpose=%00").json()["data"] == []


def test_a_store_that_stands_still_holds_up_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that wait for it have threads of their own; long bodies are read in those that all share."""
    goes_on = threading.Event()
    monkeypatch.setattr(FileShelf, "all_of", lambda *args, **options: goes_on.wait(60) and [])
    with serving(ScriptedEngine(), tmp_path) as server, ThreadPoolExecutor(48) as many:
        try:
            lists = [many.submit(httpx.get, f"{server.url}/v1/files", timeout=60) for _ in range(48)]
            server.until(lambda: "tuneloop" in httpx.get(f"{server.url}/metrics", timeout=30).text)
            time.sleep(0.5)
            answer = ask(server, "x" * 100_000)
            assert answer["choices"][0]["finish_reason"] == "stop"
        finally:
            goes_on.set()
        assert {one.result().status_code for one in lists} == {200}
