"""What is kept of a person is removed, to the last byte, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres_server import PostgresServer
from tests.serving.batches.test_batches import ended, line, sent
from tests.serving.recorded import FULL, PLANTED, USER, ask, kept, serving, vote
from tests.serving.scripted import ScriptedEngine
from tuneloop.base.errors import ServeError
from tuneloop.improvement.archive import Archive
from tuneloop.registry.store import FILE, metadata
from tuneloop.serving.engine import Piece, Query
from tuneloop.serving.forget_user import forget_user


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


def test_no_byte_is_left_in_the_files_of_postgresql(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for its write-ahead log, which is the server's own and which the guide leaves to whoever runs it."""
    monkeypatch.setenv("TUNELOOP_STORE", postgres.url)
    long = f"{PLANTED} " + " ".join(str(k) for k in range(3000))
    with serving(ScriptedEngine(echoing), tmp_path, FULL, place=postgres.url) as server, server.client() as client:
        for k in range(5):
            ask(server, f"{PLANTED} {k}", user=USER)
        vote(server, {"id": ask(server, long, user=USER)["id"], "thumb": "up", "correction": PLANTED})
        ended(client, sent(client, line("a", {"user": USER, "messages": turns(PLANTED)})).id)
    assert PLANTED.encode() in tables_of(postgres)
    forget_user(USER, workspace=tmp_path)
    left = tables_of(postgres)
    assert PLANTED.encode() not in left
    assert USER.encode() not in left


def tables_of(server: PostgresServer) -> bytes:
    """The bytes of a server's files, all but the write-ahead log's, after it has written what it held in memory."""
    import psycopg

    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
    files = [path for path in server.folder.rglob("*") if path.is_file() and "pg_wal" not in path.parts]
    return b"\n".join(path.read_bytes() for path in files)


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


def test_one_tenants_user_of_a_name_is_not_that_of_another(tmp_path: Path) -> None:
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


def test_a_line_behind_a_byte_order_mark_is_its_persons(tmp_path: Path) -> None:
    content = "\ufeff" + json.dumps(line("a", {"user": USER, "messages": turns(PLANTED)}))
    with serving(ScriptedEngine(echoing), tmp_path) as server, server.client() as client:
        client.files.create(file=("a.jsonl", content.encode()), purpose="batch")
    assert forget_user(USER, workspace=tmp_path)["lines"] == 1
    left = everything(tmp_path / FILE, tmp_path)
    assert PLANTED.encode() not in left
    assert USER.encode() not in left


def test_nobody_cannot_be_forgotten(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="TL-SERVE-FORGET-NOBODY"):
        forget_user("", workspace=tmp_path)
    assert sum(forget_user(USER, workspace=tmp_path).values()) == 0
    assert not list(tmp_path.iterdir()), "looking makes no store"
