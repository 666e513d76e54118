"""What is kept of requests and their answers, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from tests.serving.recorded import FULL, PLANTED, USER, ask, kept, serving
from tests.serving.scripted import CHAT, NAME, ScriptedEngine
from tuneloop.base.errors import ServeError
from tuneloop.improvement.archive import Archive
from tuneloop.improvement.replies import KeptReply
from tuneloop.improvement.users import user_hashes
from tuneloop.recipe.serve import RecordsPart, ServePart
from tuneloop.registry.store import FILE
from tuneloop.serving import records
from tuneloop.serving.records import ReplyWriter


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


def test_a_reply_that_cannot_be_written_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    archive = Archive(tmp_path)
    writer = ReplyWriter(archive, masked=False)
    for k, question in enumerate(
        ({"prompt": "a"}, {("no", "JSON"): PLANTED}, {"prompt": "half \ud800"}, {"prompt": "z"})
    ):
        writer.put(KeptReply(f"r{k}", 0, 1, "", "", "", NAME, "", "", "text", question, [], 0, 0))
    writer.flush()
    writer.put(KeptReply("r9", 0, 1, "", "", "", NAME, "", "", "text", {}, [], 0, 0))
    writer.close()
    archive.close()
    rows = kept(tmp_path, tmp_path / FILE)
    assert [row.id for row in rows] == ["r0", "r2", "r3", "r9"]
    assert rows[1].question == {"prompt": "half \ud800"}
    assert "a reply was not kept" in caplog.text
    assert PLANTED not in caplog.text


def test_replies_that_wait_for_a_slow_store_have_an_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their letters: ten thousand long ones would take all memory."""
    monkeypatch.setattr(records, "MOST_LETTERS", 1000)
    archive, goes_on, written = Archive(tmp_path), threading.Event(), list[int]()

    def slow(rows: list[KeptReply]) -> None:
        goes_on.wait(30)
        written.append(len(rows))

    writer = ReplyWriter(archive, masked=False)
    monkeypatch.setattr(writer, "_write", slow)
    for k in range(9):
        writer.put(KeptReply(f"r{k}", 0, 1, "", "", "", NAME, "", "", "text", {"prompt": "x" * 300}, [], 0, 0))
    goes_on.set()
    writer.flush()
    assert sum(written) == 3
    assert caplog.text.count("the store is too slow") == 6
    writer.put(KeptReply("long", 0, 1, "", "", "", NAME, "", "", "text", {"prompt": "x" * 3000}, [], 0, 0))
    writer.close()
    assert sum(written) == 4, "what was written no longer counts, and one is always taken"


def test_the_gateway_imports_no_torch_for_its_records() -> None:
    code = "import sys, tuneloop.serving.http.api, tuneloop.serving.forget_user; print(*(m for m in ('torch','transformers','pyarrow') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "", done.stderr
