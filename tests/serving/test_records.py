"""What is kept of requests and of what users say of answers; who can be found in it; and that it can be forgotten. On
SQLite and on a real PostgreSQL."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from tests.postgres_server import postgres_server
from tests.serving.batches.test_batches import ended, line, sent
from tests.serving.recorded import serving
from tests.serving.scripted import CHAT, NAME, ScriptedEngine, Served
from tuneloop.base.errors import RunError, ServeError
from tuneloop.improvement.archive import Archive
from tuneloop.improvement.feedback import all_feedback
from tuneloop.improvement.replies import KeptReply, kept_replies
from tuneloop.improvement.users import SECRET_FILE, user_hashes
from tuneloop.recipe.schema import RecordsPart, ServePart
from tuneloop.registry.store import FILE, metadata
from tuneloop.serving.engine import Piece, Query
from tuneloop.serving.forget_user import forget_user

FULL = ServePart(records=RecordsPart(replies="full"))
PLANTED = "marmalade-zeppelin-7731"
USER = "li-wei-19840423"


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    with postgres_server() as server:
        yield server.url


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str | Path]:
    """Where the store is; an empty one, also for programs that go by the environment."""
    if request.param == "sqlite":
        yield tmp_path / FILE
        return
    url = request.getfixturevalue("server_url")
    monkeypatch.setenv("TUNELOOP_STORE", url)
    yield url
    archive = Archive(tmp_path, url)
    with archive.store.write() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(text(f"DROP TABLE {table.name} CASCADE"))
    archive.close()


def ask(server: Served, content: str = "Who are you?", caller: str = "shop", **body: Any) -> Any:
    body = {"model": NAME, "messages": [{"role": "user", "content": content}]} | body
    headers = {"x-caller": caller}
    if body.get("stream"):
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=30)
        return json.loads(reply.text.split("\n")[0].removeprefix("data: "))
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=30).json()


def vote(server: Served, body: dict[str, Any], caller: str = "shop") -> httpx.Response:
    return httpx.post(f"{server.url}/v1/feedback", json=body, headers={"x-caller": caller}, timeout=30)


def kept(tmp_path: Path, place: str | Path, **equal: str) -> list[KeptReply]:
    archive = Archive(tmp_path, place)
    try:
        return list(kept_replies(archive.store, **equal))
    finally:
        archive.close()


# Replies


@pytest.mark.parametrize("stream", [True, False])
def test_a_reply_is_kept_with_where_it_came_from(stream: bool, place: str | Path, tmp_path: Path) -> None:
    with serving(ScriptedEngine(), tmp_path, FULL, place=place) as server:
        reply = ask(server, "mail me at li@example.com", user=USER, stream=stream, temperature=0.5, seed=3)
    (row,) = kept(tmp_path, place)
    assert (row.id, row.prompt, row.tenant, row.key_id) == (reply["id"], 0, "shop", "key-shop")
    assert (row.model, row.version, row.arm, row.purpose) == (NAME, "tiny:v1", "", "chat")
    assert row.question["messages"] == [{"role": "user", "content": "mail me at [EMAIL]"}]
    assert (row.question["sampling"]["temperature"], row.question["sampling"]["seed"]) == (0.5, 3)
    assert row.answers == [{"text": "Hi there! 🪨", "thought": "", "calls": [], "finish": "stop"}]
    assert (row.prompt_tokens, row.answer_tokens) == (7, 3)
    assert row.user_hash == user_hashes(tmp_path).of(USER)
    assert USER not in repr(row)


def test_who_names_no_user_is_the_key(tmp_path: Path) -> None:
    with serving(ScriptedEngine(), tmp_path, FULL) as server:
        ask(server)
        ask(server, safety_identifier="a", user="b")
    hashes = user_hashes(tmp_path)
    assert {row.user_hash for row in kept(tmp_path, tmp_path / FILE)} == {hashes.of("shop"), hashes.of("a")}


@pytest.mark.parametrize(("share", "low", "high"), [(0.5, 60, 140), (1.0, 200, 200)])
def test_a_sample_is_kept(share: float, low: int, high: int, tmp_path: Path) -> None:
    settings = ServePart(records=RecordsPart(replies="sampled", share=share))
    with serving(ScriptedEngine(), tmp_path, settings) as server, httpx.Client() as client:
        body = {"model": NAME, "messages": CHAT}
        for _ in range(200):
            assert client.post(f"{server.url}/v1/chat/completions", json=body).status_code == 200
    assert low <= len(kept(tmp_path, tmp_path / FILE)) <= high


def test_nothing_is_kept_by_default(tmp_path: Path) -> None:
    with serving(ScriptedEngine(), tmp_path) as server:
        ask(server)
    assert not list(tmp_path.iterdir())


def test_texts_stay_as_they_are_where_the_recipe_says_so(tmp_path: Path) -> None:
    settings = ServePart(records=RecordsPart(replies="full", mask=False))
    with serving(ScriptedEngine(), tmp_path, settings) as server:
        ask(server, "mail me at li@example.com")
    assert "li@example.com" in str(kept(tmp_path, tmp_path / FILE)[0].question)


def test_several_prompts_and_choices_of_one_request(tmp_path: Path) -> None:
    with serving(ScriptedEngine(), tmp_path, FULL) as server:
        body = {"model": NAME, "prompt": ["a", "b", "c"], "n": 2}
        reply = server.post(body, "/v1/completions").json()
    rows = kept(tmp_path, tmp_path / FILE)
    assert [(row.id, row.prompt, row.question["prompt"]) for row in rows] == [
        (reply["id"], k, word) for k, word in enumerate("abc")
    ]
    assert [len(row.answers) for row in rows] == [2, 2, 2]


def test_an_answer_that_was_cut_off_is_kept_as_far_as_it_came(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    engine.failure = ServeError("TL-SERVE-FAILED", error="x")
    with serving(engine, tmp_path, FULL) as server:
        ask(server, stream=True)
    (row,) = kept(tmp_path, tmp_path / FILE)
    assert row.answers == [{"text": "Hi there", "thought": "", "calls": [], "finish": ""}]


def test_calls_and_thoughts_are_kept(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with serving(ScriptedEngine(), tmp_path, FULL) as server:
        ask(server, tools=[tool], tool_choice="required", chat_template_kwargs={"enable_thinking": True})
    (row,) = kept(tmp_path, tmp_path / FILE)
    (answer,) = row.answers
    assert (answer["thought"], answer["calls"]) == ("hm", [{"name": "f", "arguments": '{"x": 1}'}])
    assert row.question["tools"] == [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def test_a_store_that_fails_fails_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 100)
    with serving(ScriptedEngine(), tmp_path, FULL) as server:
        assert ask(server, PLANTED)["choices"][0]["finish_reason"] == "stop"
    assert "TL-RUN-STORE" in caplog.text
    assert PLANTED not in caplog.text


# Feedback


def test_feedback_is_in_the_store_before_it_is_said_to_be(place: str | Path, tmp_path: Path) -> None:
    with serving(ScriptedEngine(), tmp_path, FULL, place=place) as server:
        reply = ask(server, user=USER)["id"]
        answer = vote(server, {"id": reply, "thumb": "down", "score": 0.25, "correction": "ring 13812345678"})
        assert answer.json() == {"object": "feedback", "id": reply, "choice": 0, "kept": True}
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
        assert vote(server, {"id": reply, "thumb": "up"}, caller="other").json()["kept"] is False
    archive = Archive(tmp_path)
    (word,) = all_feedback(archive.store)
    assert (word.tenant, word.user_hash) == ("other", user_hashes(tmp_path).of("other"))
    archive.close()


def test_feedback_needs_no_kept_reply(tmp_path: Path) -> None:
    with serving(ScriptedEngine(), tmp_path) as server:
        assert vote(server, {"id": "chatcmpl-0", "thumb": "up"}).json()["kept"] is False


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"id": "x"}, None),
        ({"thumb": "up"}, "id"),
        ({"id": "x", "thumb": "sideways"}, "thumb"),
        ({"id": "x", "score": 2}, "score"),
        ({"id": "x' OR 1=1 --", "thumb": "up"}, "id"),
        ({"id": "x", "thumb": "up", "stars": 5}, "stars"),
    ],
)
def test_wrong_feedback_is_refused(body: dict[str, Any], param: str | None, tmp_path: Path) -> None:
    with serving(ScriptedEngine(), tmp_path) as server:
        reply = vote(server, body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert not list(tmp_path.iterdir())


# Users


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


# Forgetting


def echoing(query: Query) -> Iterator[Piece]:
    asked = query.chat[-1]["content"] if query.chat else str(query.prompt)
    yield Piece(text=f"You said {asked}", finish="stop", tokens=3)


def everything(place: str | Path, tmp_path: Path) -> bytes:
    """All that the workspace and the database hold: the bytes of each file, and each row."""
    parts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    archive = Archive(tmp_path, place)
    with archive.store.read() as connection:
        for table in metadata.sorted_tables:
            parts += [str(tuple(row)).encode() for row in connection.execute(table.select())]
    archive.close()
    return b"\n".join(parts)


def test_no_byte_of_a_person_is_left(place: str | Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    others = "apricot-cathedral-2290"
    with serving(ScriptedEngine(echoing), tmp_path, FULL, place=place) as server, server.client(
        default_headers={"x-caller": "shop"}
    ) as client:  # fmt: skip
        for k in range(30):
            reply = ask(server, f"{PLANTED} chat {k}", user=USER)["id"]
            vote(server, {"id": reply, "thumb": "down", "correction": f"{PLANTED} correction", "user": "a reviewer"})
            ask(server, f"{others} chat {k}", user="somebody else")
        mine = [line(f"{PLANTED}-{k}", {"user": USER, "messages": turns(f"{PLANTED} line {k}")}) for k in range(20)]
        theirs = [line(f"{others}-{k}", {"user": "else", "messages": turns(f"{others} line {k}")}) for k in range(20)]
        mixed = ended(client, sent(client, *mine, *theirs).id)
        alone = ended(client, sent(client, *mine, metadata={"about": PLANTED}).id)
        deleted = ended(client, sent(client, *mine).id)
        for file in (deleted.input_file_id, deleted.output_file_id):
            client.files.delete(file)
        assert PLANTED.encode() in everything(place, tmp_path)
        assert USER.encode() not in everything(place, tmp_path).replace(mine_as_sent(), b"")

        # While the server runs.
        counts = forget_user(USER, workspace=tmp_path)
        left = everything(place, tmp_path)
        assert PLANTED.encode() not in left
        assert USER.encode() not in left
        assert left.count(others.encode()) >= 30 * 2 + 20 * 2
        assert (counts["replies"], counts["feedback"], counts["lines"]) == (30 + 60, 30, 80), counts

        # What is left is whole, and the server goes on.
        assert client.files.content(mixed.output_file_id).text.count(others) >= 20
        stored = client.files.retrieve(mixed.input_file_id)
        assert stored.bytes == len(client.files.content(mixed.input_file_id).read())
        assert [one.id for one in client.batches.list()].count(alone.id) == 0
        assert ask(server, "more")["choices"]
    captured = capfd.readouterr()
    assert PLANTED not in captured.out + captured.err
    assert USER not in captured.out + captured.err
    assert sum(forget_user(USER, workspace=tmp_path).values()) == 0


def turns(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def mine_as_sent() -> bytes:
    """The one place where a user stands in the open: the request of a line, as it was sent."""
    return json.dumps({"user": USER})[1:-1].encode()


def test_a_key_is_forgotten_with_all_that_it_sent(place: str | Path, tmp_path: Path) -> None:
    with serving(ScriptedEngine(echoing), tmp_path, FULL, place=place) as server, server.client(
        default_headers={"x-caller": USER}
    ) as client:  # fmt: skip
        ended(client, sent(client, line("a", {"messages": turns(PLANTED)}), metadata={"x": PLANTED}).id)
        client.files.create(file=(f"{PLANTED}.jsonl", b"{}"), purpose="batch")
        ask(server, PLANTED, caller=USER)
    counts = forget_user(USER, workspace=tmp_path)
    assert (counts["replies"], counts["files"], counts["batches"]) == (2, 3, 1)
    left = everything(place, tmp_path)
    assert PLANTED.encode() not in left
    assert USER.encode() not in left


def test_one_tenants_user_of_a_name_is_not_anothers(tmp_path: Path) -> None:
    with serving(ScriptedEngine(echoing), tmp_path, FULL) as server:
        ask(server, PLANTED, caller="shop", user=USER)
        ask(server, "other words", caller="bank", user=USER)
        with server.client(default_headers={"x-caller": "bank"}) as client:
            ended(client, sent(client, line("a", {"user": USER})).id)
    counts = forget_user(USER, workspace=tmp_path, tenant="shop")
    assert (counts["replies"], counts["lines"]) == (1, 0)
    assert PLANTED.encode() not in everything(tmp_path / FILE, tmp_path)
    assert len(kept(tmp_path, tmp_path / FILE, tenant="bank")) == 2
    assert forget_user(USER, workspace=tmp_path)["lines"] == 2


def test_an_answer_under_way_is_not_kept_after_its_user_was_forgotten(tmp_path: Path) -> None:
    engine = ScriptedEngine(echoing)
    engine.seconds = 0.5
    with serving(engine, tmp_path, FULL) as server:
        vote(server, {"id": "chatcmpl-0", "thumb": "up"})  # makes the store
        thread = threading.Thread(target=ask, args=(server, PLANTED), kwargs={"user": USER})
        thread.start()
        server.until(lambda: len(engine.running) == 1)
        forget_user(USER, workspace=tmp_path)
        thread.join()
    assert PLANTED.encode() not in everything(tmp_path / FILE, tmp_path)


def test_lines_of_a_running_batch_are_forgotten(tmp_path: Path) -> None:
    engine = ScriptedEngine(echoing)
    engine.seconds = 0.1
    with serving(engine, tmp_path) as server, server.client() as client:
        lines = [line(f"q-{k}", {"user": USER if k % 2 else "else", "messages": turns(PLANTED if k % 2 else "x")})
                 for k in range(40)]  # fmt: skip
        batch = sent(client, *lines)
        server.until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 4)
        forget_user(USER, workspace=tmp_path)
        done = ended(client, batch.id)
        assert done.status == "completed"
        assert client.files.content(done.output_file_id).text.count("custom_id") == 20
    assert PLANTED.encode() not in everything(tmp_path / FILE, tmp_path)


def test_nobody_cannot_be_forgotten(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="TL-SERVE-FORGET-NOBODY"):
        forget_user("", workspace=tmp_path)
    assert sum(forget_user(USER, workspace=tmp_path).values()) == 0
    assert not list(tmp_path.iterdir()), "looking makes no store"


def test_the_gateway_imports_no_torch_for_its_records() -> None:
    import subprocess

    code = "import sys, tuneloop.serving.http.api, tuneloop.serving.forget_user; print(*(m for m in ('torch','transformers','pyarrow') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "", done.stderr
