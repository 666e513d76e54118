"""The server as a process under each program that runs it: it drains, reads its settings anew, and logs no text."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving.programs import PROGRAMS, running, write_config
from tests.serving.scripted import CHAT, NAME, ScriptedEngine, Served, serving
from tuneloop.serving.engine import Piece, Query

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="its signals are others")
CHATS = "/v1/chat/completions"
BODY = {"model": NAME, "messages": CHAT, "stream": True}
STREAMS, WORDS = 50, 30
SECRET = "Planted-Wombat-4711"


def words(query: Query) -> Iterator[Piece]:
    for n in range(WORDS):
        yield Piece(text=f"w{n} ", tokens=1)
    yield Piece(finish="stop")


@pytest.fixture
def upstream() -> Iterator[Served]:
    engine = ScriptedEngine(words, capacity=200)
    engine.seconds = 0.0
    with serving(engine) as one:
        yield one


@pytest.mark.parametrize("program", PROGRAMS)
def test_sigterm_truncates_none_of_fifty_streams(program: str, upstream: Served, tmp_path: Path) -> None:
    if program == "gunicorn":
        pytest.importorskip("uvicorn_worker", reason="pip install -e '.[dev]'")
    with running(program, tmp_path, upstream.url, serve="  queue: 100\n") as server:
        upstream.engine.seconds = 3.0  # between two pieces: none has ended before all have begun, and the signal came
        asyncio.run(_drained(server.url, server.process.pid, upstream.engine))
        assert server.process.wait(120) in (0, -signal.SIGTERM), server.errors.read_text(encoding="utf-8")
    assert (server.process.returncode == 0) >= (program != "uvicorn"), "uvicorn itself ends by the signal"
    ended = [line for line in server.lines() if line["event"] == "request"]
    assert sum(line["status"] == 200 and line.get("finish") == "stop" for line in ended) == STREAMS
    assert any(line["status"] == 503 and line["code"] == "TL-SERVE-CLOSING" for line in ended)


async def _drained(url: str, process: int, engine: ScriptedEngine) -> None:
    """Fifty streams, SIGTERM as soon as each has its first piece; what is asked after that is refused with 503."""
    begun, all_begun = 0, asyncio.Event()
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:

        async def one() -> str:
            nonlocal begun
            text = ""
            async with client.stream("POST", f"{url}{CHATS}", json=BODY) as reply:
                assert reply.status_code == 200
                async for part in reply.aiter_text():
                    if "w0" in part and "w0" not in text:
                        begun += 1
                        if begun == STREAMS:
                            all_begun.set()
                    text += part
            return text

        streams = [asyncio.create_task(one()) for _ in range(STREAMS)]
        await asyncio.wait_for(all_begun.wait(), 120)
        os.kill(process, signal.SIGTERM)
        refused = await _refused(client, url)
        assert refused.json()["error"]["code"] == "TL-SERVE-CLOSING"
        assert "retry-after" in refused.headers
        assert len(engine.running) == STREAMS
        engine.seconds = 0.0
        texts = await asyncio.gather(*streams)
    whole = "".join(f"w{n} " for n in range(WORDS))
    for text in texts:
        assert text.endswith("data: [DONE]\n\n")
        pieces = [part.split('"content":"')[1].split('"')[0] for part in text.split("\n\n") if '"content":"' in part]
        assert "".join(pieces) == whole


async def _refused(client: httpx.AsyncClient, url: str) -> httpx.Response:
    """The first refusal: a signal takes a moment to arrive, and gunicorn hands it on to its workers."""
    end = time.monotonic() + 30
    while True:
        reply = await client.get(f"{url}/v1/models")
        if reply.status_code == 503:
            return reply
        assert reply.status_code == 200
        assert time.monotonic() < end, "not refused"
        await asyncio.sleep(0.02)


def test_sighup_reads_settings_and_key_anew_and_keeps_them_where_they_are_wrong(
    upstream: Served, tmp_path: Path
) -> None:
    key = tmp_path / "key.txt"
    key.write_text("first", encoding="utf-8")
    named = f"  key_file: {key}\n"
    with running("tuneloop", tmp_path, upstream.url, serve=named) as server:

        def status(word: str) -> int:
            return httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {word}"}).status_code

        assert (status("first"), status("second")) == (200, 401)
        key.write_text("second", encoding="utf-8")
        assert status("first") == 200, "a file alone changes nothing"
        os.kill(server.process.pid, signal.SIGHUP)
        server.until_logged("reloaded")
        assert (status("first"), status("second")) == (401, 200)
        for wrong, code in (("  quue: 3\n", "TL-RECIPE"), (f"  key_file: {tmp_path}/none\n", "TL-SERVE-KEY-FILE")):
            before = sum(line["event"] == "reload failed" for line in server.lines())
            write_config(tmp_path / "serve.yaml", upstream.url, wrong)
            os.kill(server.process.pid, signal.SIGHUP)
            server.until_logged("reload failed", before + 1)
            assert [line for line in server.lines() if line["event"] == "reload failed"][-1]["code"].startswith(code)
            assert (status("first"), status("second")) == (401, 200)
        write_config(tmp_path / "serve.yaml", upstream.url, f"{named}  slots: 7\n")
        os.kill(server.process.pid, signal.SIGHUP)
        server.until_logged("needs a restart")


def test_the_log_is_json_and_has_no_text(upstream: Served, tmp_path: Path) -> None:
    with running("tuneloop", tmp_path, upstream.url) as server:
        post = httpx.Client(base_url=server.url, timeout=60, headers={"X-Request-Id": "mine-1"}).post
        chat = [{"role": "user", "content": SECRET}]
        reply = post(CHATS, json={**BODY, "messages": chat, "user": SECRET})
        assert reply.headers["x-request-id"] == "mine-1"
        post(CHATS, json={**BODY, "messages": chat, "model": SECRET})
        post(f"/v1/{SECRET}?q={SECRET}", content=SECRET)
        post(CHATS, content=f'{{"{SECRET}": 1}}')
        other = httpx.get(f"{server.url}/v1/models", headers={"X-Request-Id": f"{SECRET} twice"})
        assert len(other.headers["x-request-id"]) == 32
        server.until_logged("request", 5 + sum(line.get("route") == "ready" for line in server.lines()))
    log = server.errors.read_text(encoding="utf-8")
    assert SECRET not in log
    lines = [line for line in server.lines() if line["event"] == "request" and line["route"] != "ready"]
    # A line is written when its answer has gone: of requests that follow at once, in no certain order.
    (first,) = [line for line in lines if line["status"] == 200 and line["method"] == "POST"]
    refused = {line["code"]: line for line in lines if "code" in line}
    assert (first["request"], first["method"], first["route"]) == ("mine-1", "POST", "chat_completions")
    assert (first["status"], first["model"], first["finish"], first["key"]) == (200, NAME, "stop", "")
    assert first["answer_tokens"] == WORDS
    assert 0 < first["first_token_ms"] <= first["ms"]
    assert refused.keys() == {"TL-SERVE-MODEL", "TL-SERVE-ROUTE", "TL-SERVE-REQUEST"}
    assert "model" not in refused["TL-SERVE-MODEL"], "a name that nobody serves may be a text"


def test_two_workers_share_their_counts(upstream: Served, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn_worker", reason="pip install -e '.[dev]'")
    folder = tmp_path / "metrics"
    folder.mkdir()
    with running("gunicorn", tmp_path, upstream.url, PROMETHEUS_MULTIPROC_DIR=str(folder)) as server:
        for _ in range(12):  # each on a connection of its own, so that both workers get some
            assert httpx.get(f"{server.url}/v1/models", timeout=60).status_code == 200
        for _ in range(4):
            text = httpx.get(f"{server.url}/metrics", timeout=60).text
            assert 'tuneloop_requests_total{route="models",status="200"} 12.0' in text
            assert 'tuneloop_capacity{worker="' in text
            families = [line for line in text.splitlines() if line.startswith("# TYPE")]
            assert len(set(families)) == len(families)
