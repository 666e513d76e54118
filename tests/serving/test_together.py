"""All steps of a server at once: their order, what a reload leaves, what the figures say, and lines of batches."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient

from tests.serving.batches.test_batches import jsonl, line
from tests.serving.scripted import CHAT, NAME, ScriptedEngine
from tuneloop.improvement.archive import Archive
from tuneloop.recipe.serve import CachePart, LimitsPart, RecordsPart, SafetyPart, ServePart
from tuneloop.registry.store import FILE, open_store
from tuneloop.serving.access import key_ring, memory_limits
from tuneloop.serving.access.access import Access
from tuneloop.serving.access.fair_queue import Queue
from tuneloop.serving.access.key_ring import KeyRing
from tuneloop.serving.access.keys import issue, revoke
from tuneloop.serving.access.limits import KeyLimits
from tuneloop.serving.admission import Admission
from tuneloop.serving.application import admission_steps
from tuneloop.serving.cache.cache import Cache
from tuneloop.serving.guard import GuardStep
from tuneloop.serving.http import api
from tuneloop.serving.http.api import create_app
from tuneloop.serving.record_keeper import RecordKeeper
from tuneloop.serving.records import Records

CHATS = "/v1/chat/completions"
BODY = {"model": NAME, "messages": CHAT}


def everything(**cache: Any) -> ServePart:
    return ServePart(
        limits=LimitsPart(requests=1000),
        cache=CachePart(**{"backend": "memory", **cache}),
        safety=SafetyPart(policy="default"),
        records=RecordsPart(replies="full"),
    )


GATEWAY = """
import sys
import psutil
from tuneloop.serving.asgi import create
create()
heavy = ("torch", "transformers", "pyarrow", "numpy", "pandas", "datasets")
print([name for name in heavy if name in sys.modules], psutil.Process().memory_info().rss >> 20)
"""


def test_the_gateway_with_all_its_parts_is_small(tmp_path: Path) -> None:
    """No torch, and under 250 MB."""
    config = tmp_path / "serve.yaml"
    config.write_text(
        "serve: {engine: proxy, upstreams: ['http://127.0.0.1:9/v1'], limits: {requests: 5}, "
        "redis: 'redis://127.0.0.1:9/0', cache: {backend: redis}, safety: {policy: default}, records: {replies: full}}"
    )
    about = {"TUNELOOP_SERVE_CONFIG": str(config), "TUNELOOP_SERVE_WORKSPACE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", GATEWAY], env={**os.environ, **about}, capture_output=True, text=True, timeout=300
    )
    modules, _, size = done.stdout.strip().rpartition(" ")
    assert modules == "[]", done.stderr
    assert int(size) < 250


class Whole:
    """A server of a workspace with all its steps, and the settings that a reload reads."""

    def __init__(self, workspace: Path, settings: ServePart, engine: Any = None) -> None:
        self.workspace, self.settings, self.engine = workspace, settings, engine or ScriptedEngine()
        self.ring = KeyRing(workspace / FILE)
        self.keeper = RecordKeeper(Archive(workspace), settings.records, settings.batches, "tiny:v1")
        self.first = self.steps()
        self.app = create_app(
            self.engine, admission=self.first, settings=settings, reread=self.steps, keeper=self.keeper,
            close=[self.ring.close],
        )  # fmt: skip

    def steps(self) -> list[Admission]:
        return admission_steps(self.settings, self.engine, None, self.workspace, ring=self.ring, keeper=self.keeper)


def reload(client: TestClient) -> None:
    assert client.portal is not None
    client.portal.call(client.app.state.reload)  # type: ignore[attr-defined]


def test_a_request_passes_the_steps_in_order(tmp_path: Path) -> None:
    order = [Access, KeyLimits, Records, GuardStep, Cache, Queue]
    assert [type(step) for step in Whole(tmp_path, everything()).steps()] == order


def test_a_reload_goes_on_with_answers_counts_and_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_limits, "clock", lambda: 1_000_000)  # nothing comes back meanwhile
    whole = Whole(tmp_path, everything())
    with TestClient(whole.app) as client:
        first = client.post(CHATS, json=BODY)
        for k in range(3):
            whole.settings = everything(ttl=100 + k)
            reload(client)
        again = client.post(CHATS, json=BODY)
        assert first.json()["choices"] == again.json()["choices"]
        left = [int(reply.headers["x-ratelimit-remaining-requests"]) for reply in (first, again)]
        assert left == [999, 998]
        client.post(CHATS, json={**BODY, "messages": [{"role": "user", "content": "Mail me at li.wei@example.com"}]})
        figures = client.get("/metrics").text
    assert "tuneloop_cache_hits_total 1.0" in figures
    assert "tuneloop_guard_input_log_total 1.0" in figures
    assert "tuneloop_limited_requests_total 0.0" in figures
    assert "tuneloop_queue_running 0.0" in figures
    assert len(whole.engine.streams) == 2


def test_settings_that_are_wrong_leave_the_present_ones(tmp_path: Path) -> None:
    whole = Whole(tmp_path, everything())
    with TestClient(whole.app) as client:
        whole.settings = whole.settings.model_copy(update={"safety": SafetyPart(policy=str(tmp_path / "none.yaml"))})
        reload(client)
        assert client.post(CHATS, json=BODY).status_code == 200


def test_lines_of_a_batch_go_by_the_key_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of the key hold for them, and once it is revoked they are refused."""
    monkeypatch.setattr(key_ring, "FRESH", 0.05)
    store = open_store(tmp_path / FILE)
    try:
        made, key = issue(store, "shop")
        _, other = issue(store, "bank")
        engine = ScriptedEngine()
        engine.seconds = 0.2
        whole = Whole(tmp_path, ServePart(), engine)
        with TestClient(whole.app, headers={"Authorization": f"Bearer {key}"}) as client:
            lines = jsonl(*(line(f"q{k}") for k in range(40)))
            files = {"file": ("a.jsonl", lines)}
            file = client.post("/v1/files", files=files, data={"purpose": "batch"}).json()["id"]
            body = {"input_file_id": file, "endpoint": CHATS, "completion_window": "24h"}
            batch = client.post("/v1/batches", json=body).json()["id"]
            bank = {"Authorization": f"Bearer {other}"}
            assert client.get(f"/v1/batches/{batch}", headers=bank).status_code == 404
            until(lambda: client.get(f"/v1/batches/{batch}").json()["request_counts"]["completed"] >= 2)
            revoke(store, made.id)
            until(lambda: whole.keeper.table.find(batch, caller_of_key(made)).status == "completed")
            counts = whole.keeper.table.find(batch, caller_of_key(made))
    finally:
        store.close()
    assert counts.completed + counts.failed == 40
    assert counts.failed > 0, "lines after the key was revoked"


def caller_of_key(key: Any) -> Any:
    from tuneloop.serving.admission import Caller

    return Caller(key.id, key.name, frozenset(key.scopes), key.name)


def until(true: Any) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_who_hangs_up_takes_the_answer_from_nobody_who_waits_for_the_same(tmp_path: Path) -> None:
    """Two ask the same and wait behind another one; the first of them goes, the second is answered."""
    engine = ScriptedEngine(capacity=1)
    engine.seconds = 0.5
    whole = Whole(tmp_path, everything(), engine)
    bound = api.listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(whole.app, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    url = f"http://127.0.0.1:{bound.getsockname()[1]}{CHATS}"
    other = {**BODY, "messages": [{"role": "user", "content": "Another one"}]}
    status: list[int] = []
    try:
        threads = [threading.Thread(target=lambda: httpx.post(url, json=other, timeout=60))]
        threads[0].start()
        until(lambda: len(engine.running) == 1)
        host = socket.create_connection(bound.getsockname())
        text = json.dumps(BODY).encode()
        head = f"POST {CHATS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        host.sendall(head.encode() + text)
        cache = next(step for step in whole.first if isinstance(step, Cache))
        until(lambda: cache.gauges()["cache_misses_total"] == 2)
        threads.append(
            threading.Thread(target=lambda: status.append(httpx.post(url, json=BODY, timeout=60).status_code))
        )
        threads[1].start()
        until(lambda: cache.gauges()["cache_shared_total"] == 1)
        host.close()
        for one in threads:
            one.join(60)
    finally:
        server.should_exit = True
        thread.join(30)
    assert status == [200]
