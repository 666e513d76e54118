"""Files and batches as OpenAI's own client calls them: what comes back, what is refused, and a restart in the middle."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.serving.recorded import ByHeader, serving
from tests.serving.scripted import CHAT, NAME, ScriptedEngine, script
from tuneloop.base.errors import ServeError
from tuneloop.recipe.serve import BatchesPart, RecordsPart, ServePart
from tuneloop.registry import store
from tuneloop.registry.store import FILE
from tuneloop.serving.admission import Admission, Caller, caller_of
from tuneloop.serving.batches import batch_runner, batch_table
from tuneloop.serving.record_keeper import RecordKeeper

ENDPOINT = "/v1/chat/completions"


def line(name: str, body: dict[str, Any] | None = None, **other: Any) -> dict[str, Any]:
    body = {"model": NAME, "messages": CHAT, "max_tokens": 5} | (body or {})
    return {"custom_id": name, "method": "POST", "url": ENDPOINT, "body": body} | other


def jsonl(*lines: Any) -> bytes:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines).encode()


def sent(client: openai.OpenAI, *lines: Any, **options: Any) -> Any:
    file = client.files.create(file=("asked.jsonl", io.BytesIO(jsonl(*lines))), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", **options)


def ended(client: openai.OpenAI, batch: str, seconds: float = 40) -> Any:
    end = time.monotonic() + seconds
    while (found := client.batches.retrieve(batch)).status in batch_table.OPEN:
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return found


def answers(client: openai.OpenAI, file: str) -> list[dict[str, Any]]:
    return [json.loads(one) for one in client.files.content(file).text.splitlines()]


def test_the_official_client_sends_a_batch_and_reads_its_answers(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    with serving(engine, tmp_path) as server, server.client() as client:
        asked = [line(f"q-{k}", {"user": f"u{k}"}) for k in range(20)] + [line("bad", {"model": "no such"})]
        batch = sent(client, *asked, metadata={"for": "tests"})
        assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"for": "tests"})
        done = ended(client, batch.id)
        assert (done.status, done.errors) == ("completed", None)
        assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (21, 20, 1)
        assert done.created_at <= done.in_progress_at <= done.completed_at < done.expires_at
        out = answers(client, done.output_file_id)
        assert [one["custom_id"] for one in out] == [f"q-{k}" for k in range(20)]
        assert {one["response"]["status_code"] for one in out} == {200}
        assert out[0]["response"]["body"]["choices"][0]["message"]["content"] == "Hi there! 🪨"
        assert out[0]["error"] is None
        (wrong,) = answers(client, done.error_file_id)
        assert (wrong["custom_id"], wrong["response"]["status_code"]) == ("bad", 404)
        assert wrong["response"]["body"]["error"]["code"] == "TL-SERVE-MODEL"
        assert [one.id for one in client.batches.list()] == [batch.id]
    assert {query.user for query in engine.queries} == {f"u{k}" for k in range(20)}


def test_files_come_back_byte_for_byte_and_go(tmp_path: Path) -> None:
    content = '\ufeff{"a": "你好"}\r\n\n  x'.encode()
    with serving(ScriptedEngine(), tmp_path) as server, server.client() as client:
        stored = client.files.create(file=("../问.jsonl", content), purpose="batch")
        assert (stored.filename, stored.bytes, stored.purpose) == ("问.jsonl", len(content), "batch")
        assert client.files.retrieve(stored.id) == stored
        assert client.files.wait_for_processing(stored.id) == stored
        assert client.files.content(stored.id).read() == content
        other = client.files.create(file=("b.jsonl", b""), purpose="batch")
        assert {one.id for one in client.files.list()} == {stored.id, other.id}
        listed = [one.id for one in client.files.list(limit=1)]
        assert sorted(listed) == sorted([stored.id, other.id]), "the client asks for page after page"
        assert client.files.delete(stored.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(stored.id)
        with pytest.raises(openai.NotFoundError):
            client.files.content(stored.id)


REFUSED = [
    (b"\xff\xfe", 400, "file"),
    (b"a\0b", 400, "file"),
    (b"x" * 1_100_000, 413, "file"),
]


@pytest.mark.parametrize(("content", "status", "param"), REFUSED)
def test_a_file_that_is_refused_leaves_nothing(content: bytes, status: int, param: str, tmp_path: Path) -> None:
    settings = ServePart(batches=BatchesPart(file_mb=1))
    with serving(ScriptedEngine(), tmp_path, settings) as server, server.client() as client:
        with pytest.raises(openai.APIStatusError) as caught:
            client.files.create(file=("a.jsonl", content), purpose="batch")
        assert (caught.value.status_code, caught.value.param) == (status, param)
        assert not client.files.list().data


def test_what_a_key_may_store_has_an_end(tmp_path: Path) -> None:
    settings = ServePart(batches=BatchesPart(storage_mb=1))
    with serving(ScriptedEngine(), tmp_path, settings) as server, server.client() as client:
        client.files.create(file=("a.jsonl", b"x" * 600_000), purpose="batch")
        with pytest.raises(openai.APIStatusError) as caught:
            client.files.create(file=("b.jsonl", b"x" * 600_000), purpose="batch")
        assert caught.value.code == "TL-SERVE-STORAGE"


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("/v1/files", {"json": {}}, 415),
        ("/v1/files", {"files": {"file": b"x"}}, 400),
        ("/v1/files", {"files": {"file": b"x"}, "data": {"purpose": "fine-tune"}}, 400),
        ("/v1/files", {"data": {"purpose": "batch"}, "files": {"other": b"x"}}, 400),
        ("/v1/files", {"content": b"--x", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400),
        ("/v1/files", {"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 400),
        ("/v1/batches", {"json": {"input_file_id": "file-0", "endpoint": ENDPOINT, "completion_window": "24h"}}, 404),
        ("/v1/batches", {"json": {"input_file_id": "file-0", "endpoint": "/v1/x", "completion_window": "24h"}}, 400),
        ("/v1/batches", {"json": {"input_file_id": "'; --", "endpoint": ENDPOINT, "completion_window": "24h"}}, 400),
        ("/v1/batches/batch_0/cancel", {}, 404),
    ],
)
def test_wrong_requests_are_refused(path: str, options: dict[str, Any], status: int, tmp_path: Path) -> None:
    with serving(ScriptedEngine(), tmp_path) as server:
        reply = httpx.post(f"{server.url}{path}", **options)
        assert reply.status_code == status, reply.text
        assert reply.json()["error"]["code"].startswith("TL-SERVE-")


FAULTS = [
    ([line("a"), "no object"], [("invalid_json_line", 2)]),
    ([line("a"), line("a")], [("duplicate_custom_id", 2)]),
    ([line("a", url="/v1/completions")], [("mismatched_endpoint", 1)]),
    ([line("", {}), line("b", method="GET")], [("missing_required_parameter", 1), ("invalid_method", 2)]),
    ([line("a", {"stream": True})], [("invalid_request", 1)]),
    ([], [("empty_file", None)]),
]


@pytest.mark.parametrize(("lines", "faults"), FAULTS)
def test_a_batch_with_a_wrong_line_fails_before_anything_is_asked(lines: Any, faults: Any, tmp_path: Path) -> None:
    engine = ScriptedEngine()
    with serving(engine, tmp_path) as server, server.client() as client:
        done = ended(client, sent(client, *lines).id)
        assert done.status == "failed"
        assert [(one.code, one.line) for one in done.errors.data] == faults
        with pytest.raises(openai.BadRequestError):
            client.batches.cancel(done.id)
    assert not engine.queries


def test_a_restart_in_the_middle_asks_no_line_twice_that_was_answered(tmp_path: Path) -> None:
    first = ScriptedEngine(capacity=4)
    first.seconds = 0.05
    with serving(first, tmp_path) as server, server.client() as client:
        batch = sent(client, *[line(f"q-{k}", {"user": f"u{k}"}) for k in range(40)])
        server.until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 8)
    written = len(first.queries)
    assert 8 <= written < 40
    second = ScriptedEngine()
    with serving(second, tmp_path) as server, server.client() as client:
        done = ended(client, batch.id)
        assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 40, 0)
        assert [one["custom_id"] for one in answers(client, done.output_file_id)] == [f"q-{k}" for k in range(40)]
    assert len(second.queries) <= 40 - 8, "what was answered is not asked again"
    assert len(first.queries) + len(second.queries) <= 40 + 4, "only what was under way is asked again"


def test_a_batch_of_a_process_that_was_killed_is_taken_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has let go of it: its lease ends, and another process goes on."""
    monkeypatch.setattr(batch_table, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(batch_runner, "POLL_SECONDS", 0.1)
    with serving(ScriptedEngine(), tmp_path) as server, server.client() as client:
        file = client.files.create(file=("a.jsonl", jsonl(line("a"), line("b"))), purpose="batch")
    keeper = RecordKeeper.of(tmp_path, ServePart(), "")
    batch = keeper.table.create(file.id, ENDPOINT, None, Caller())
    taken = keeper.archive.store.retried(lambda c: batch_table.claim(c, "killed", time.time()))
    assert taken is not None
    assert keeper.archive.store.retried(lambda c: batch_table.claim(c, "other", time.time())) is None
    keeper.close()
    with serving(ScriptedEngine(), tmp_path) as server, server.client() as client:
        assert ended(client, batch.id).request_counts.completed == 2


def test_interactive_requests_go_first(tmp_path: Path) -> None:
    """While the engine is full of them, a batch waits."""
    engine = ScriptedEngine(capacity=2)
    engine.seconds = 0.2
    with serving(engine, tmp_path) as server, server.client() as client:
        held = [asyncio.run(engine.submit(_query())) for _ in range(2)]
        batch = sent(client, line("a"), line("b"))
        server.until(lambda: client.batches.retrieve(batch.id).status == "in_progress")
        time.sleep(0.3)
        assert len(engine.queries) == 2, "the batch has a place that it should have left"
        for stream in held:
            asyncio.run(stream.aclose())
        assert ended(client, batch.id).request_counts.completed == 2


def _query() -> Any:
    from tuneloop.serving.engine import Query

    return Query("chat", NAME, chat=CHAT)


def test_a_cancelled_batch_keeps_the_answers_that_it_has(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    engine.seconds = 0.05
    with serving(engine, tmp_path) as server, server.client() as client:
        batch = sent(client, *[line(f"q-{k}") for k in range(200)])
        server.until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 2)
        assert client.batches.cancel(batch.id).status == "cancelling"
        done = ended(client, batch.id)
        assert done.status == "cancelled"
        assert 2 <= done.request_counts.completed < 200
        assert len(answers(client, done.output_file_id)) == done.request_counts.completed


def test_an_expired_batch_says_what_it_did_not_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_table, "WINDOW_SECONDS", -1)
    with serving(ScriptedEngine(), tmp_path) as server, server.client() as client:
        done = ended(client, sent(client, line("a"), line("b")).id)
        assert (done.status, done.request_counts.failed) == ("expired", 2)
        assert {one["error"]["code"] for one in answers(client, done.error_file_id)} == {"batch_expired"}


def test_a_busy_server_is_asked_again(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    engine.refusal = ServeError("TL-SERVE-FULL", status=429, waiting=1, seconds=1)
    with serving(engine, tmp_path) as server, server.client() as client:
        batch = sent(client, line("a"))
        server.until(lambda: client.batches.retrieve(batch.id).status == "in_progress")
        time.sleep(0.3)
        engine.refusal = None
        done = ended(client, batch.id)
        assert (done.request_counts.completed, done.request_counts.failed) == (1, 0)


class Stingy(Admission):
    """Stands for the limits: the requests of some callers are refused for a long time, or for ever."""

    refused: tuple[str, ...] = ("one",)
    code = "TL-SERVE-LIMIT"

    async def answer(self, question: Any, submit: Any) -> Any:
        if caller_of(question.request).tenant in self.refused:
            facts = {"limit": "1 request a minute"} if self.code == "TL-SERVE-LIMIT" else {"wanted": 9, "limit": 1}
            raise ServeError(self.code, status=429, seconds=60, **facts)
        return await submit(question)


def test_who_has_used_up_a_limit_holds_up_no_other_tenants_batch(tmp_path: Path) -> None:
    """Neither the few places for lines, nor those for batches."""
    with serving(ScriptedEngine(), tmp_path, more=[Stingy()]) as server:
        one = server.client(default_headers={"x-caller": "one"})
        two = server.client(default_headers={"x-caller": "two"})
        waiting = [sent(one, *[line(f"q-{k}") for k in range(9)]) for _ in range(batch_runner.AT_A_TIME + 1)]
        server.until(lambda: one.batches.retrieve(waiting[0].id).status == "in_progress")
        time.sleep(0.3)
        done = ended(two, sent(two, line("a"), line("b")).id, seconds=15)
        assert (done.status, done.request_counts.completed) == ("completed", 2)
        assert one.batches.retrieve(waiting[0].id).request_counts.failed == 0
        one.batches.cancel(waiting[0].id)
        assert ended(one, waiting[0].id).status == "cancelled"


def test_a_line_that_no_wait_makes_possible_is_answered_with_its_refusal(tmp_path: Path) -> None:
    step = Stingy()
    step.code = "TL-SERVE-LIMIT-SIZE"
    with serving(ScriptedEngine(), tmp_path, more=[step]) as server:
        one = server.client(default_headers={"x-caller": "one"})
        done = ended(one, sent(one, line("a")).id)
        assert (done.status, done.request_counts.failed) == ("completed", 1)
        [wrong] = answers(one, done.error_file_id)
        assert wrong["response"]["body"]["error"]["code"] == "TL-SERVE-LIMIT-SIZE"


def test_tenants_do_not_see_each_other(tmp_path: Path) -> None:
    with serving(ScriptedEngine(), tmp_path) as server:
        one = server.client(default_headers={"x-caller": "one"})
        two = server.client(default_headers={"x-caller": "two"})
        batch = sent(one, line("a"))
        done = ended(one, batch.id)
        files = [batch.input_file_id, done.output_file_id]
        for ask in (two.files.retrieve, two.files.content, two.files.delete):
            for file in files:
                with pytest.raises(openai.NotFoundError):
                    ask(file)
        for ask in (two.batches.retrieve, two.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                ask(batch.id)
        with pytest.raises(openai.NotFoundError):
            two.batches.create(input_file_id=files[0], endpoint=ENDPOINT, completion_window="24h")
        assert not two.files.list().data
        assert not two.batches.list().data


def test_a_server_may_take_none(tmp_path: Path) -> None:
    off = ServePart(batches=BatchesPart(enabled=False), records=RecordsPart(feedback=False))
    with serving(ScriptedEngine(), tmp_path, off) as server, server.client() as client:
        with pytest.raises(openai.NotFoundError) as caught:
            client.batches.list()
        assert caught.value.code == "TL-SERVE-OFF"
        assert server.post({"id": "x", "thumb": "up"}, "/v1/feedback").json()["error"]["code"] == "TL-SERVE-OFF"
    assert not list(tmp_path.iterdir()), "nothing is made that nobody uses"


def test_a_batch_asks_nothing_that_its_key_may_not(tmp_path: Path) -> None:
    """The scope of the endpoint is wanted beside that of batches, and the key must live on until the last line."""
    narrow = ByHeader(frozenset({"batches", "embeddings"}))
    with serving(ScriptedEngine(), tmp_path, caller=narrow) as server, server.client() as client:
        with pytest.raises(openai.PermissionDeniedError) as caught:
            sent(client, line("a"))
        assert (caught.value.code, caught.value.param) == ("TL-SERVE-BATCH-SCOPE", "endpoint")
        narrow.scopes = frozenset({"batches", "chat"})
        narrow.ended = True
        done = ended(client, sent(client, line("a")).id)
        (wrong,) = answers(client, done.error_file_id)
        assert (done.request_counts.failed, wrong["response"]["status_code"]) == (1, 401)
        assert not server.engine.queries


def test_a_fault_of_the_server_is_the_answer_of_its_line_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked once, and the words of the fault are nobody's."""

    def faulty(query: Any) -> Any:
        if query.user == "li":
            raise ValueError("li and a text")
        return script(query)

    engine = ScriptedEngine(faulty)
    with serving(engine, tmp_path) as server, server.client() as client:
        done = ended(client, sent(client, line("a", {"user": "li"}), line("b")).id)
        assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 1, 1)
        (wrong,) = answers(client, done.error_file_id)
        assert (wrong["custom_id"], wrong["response"]["status_code"]) == ("a", 500)
        assert wrong["response"]["body"]["error"]["code"] == "TL-SERVE-FAILED"
    assert len(engine.queries) == 2
    assert "met a fault: ValueError" in caplog.text
    assert "li and a text" not in caplog.text


def test_odd_lines_end_a_batch_as_others_do(place: str | Path, tmp_path: Path) -> None:
    """Half a surrogate pair, NUL, a byte order mark and deep nesting reach neither the store's limits nor a loop."""
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    lines = [line("\ud800"), line("\0"), line("d", {"metadata": {"a": deep}})]
    content = "\ufeff" + "".join(json.dumps(one) + "\n" for one in lines)
    with serving(ScriptedEngine(), tmp_path, place=place) as server, server.client() as client:
        file = client.files.create(file=("a.jsonl", content.encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
        done = ended(client, batch.id)
        assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 2, 1)
        assert [one["custom_id"] for one in answers(client, done.output_file_id)] == ["\ud800", "\0"]


def test_a_file_of_200_mb_is_refused_while_it_is_sent(tmp_path: Path) -> None:
    """By its length, and without one as soon as it is too long; nothing of it is left."""

    def form() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        yield from (b"x" * 999_999 + b"\n" for _ in range(200))

    (tmp_path / "workspace").mkdir()
    (tmp_path / "big").write_bytes((b"x" * 999_999 + b"\n") * 200)
    with serving(ScriptedEngine(), tmp_path / "workspace") as server, server.client() as client:
        with (tmp_path / "big").open("rb") as big, pytest.raises(openai.APIStatusError) as caught:
            client.files.create(file=big, purpose="batch")
        assert (caught.value.status_code, caught.value.code) == (413, "TL-SERVE-UPLOAD")
        kind = {"content-type": "multipart/form-data; boundary=b"}
        reply = httpx.post(f"{server.url}/v1/files", content=form(), headers=kind, timeout=60)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "TL-SERVE-UPLOAD")
        assert "100000000" in reply.json()["error"]["message"]
    assert not list((tmp_path / "workspace").iterdir())


def test_nothing_is_asked_whose_answer_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store takes nothing a batch waits; then it goes on."""
    monkeypatch.setattr(batch_table, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(batch_runner, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(batch_runner, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(batch_runner, "AWAY_SECONDS", 0.2)
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.2)
    engine = ScriptedEngine(capacity=4)
    engine.seconds = 0.05
    with serving(engine, tmp_path) as server, server.client() as client:
        batch = sent(client, *[line(f"q-{k}") for k in range(40)])
        server.until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 2)
        other = sqlite3.connect(tmp_path / FILE, isolation_level=None, timeout=30)
        other.execute("BEGIN IMMEDIATE")
        written = client.batches.retrieve(batch.id).request_counts.completed
        time.sleep(4)
        assert len(engine.queries) <= written + 8, "what was under way is asked, and no more"
        other.execute("ROLLBACK")
        other.close()
        assert ended(client, batch.id).request_counts.completed == 40


def test_a_line_longer_than_any_request_is_refused(tmp_path: Path) -> None:
    """A tree of JSON takes many times its bytes in memory: 100 MB of "[]," would take gigabytes."""
    with serving(ScriptedEngine(), tmp_path) as server, server.client() as client:
        bomb = b'{"body": [' + b"[]," * 4_000_000 + b"[]]}\n"
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.create(file=("a.jsonl", b"{}\n" + bomb), purpose="batch")
        assert caught.value.code == "TL-SERVE-LINE"
        assert "Line 2 " in caught.value.message
        assert not client.files.list().data
