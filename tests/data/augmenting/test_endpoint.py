"""An endpoint as it is on a good day and on a bad one, spoken to over a real socket."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.endpoint_server import Server, running
from tuneloop.base import language
from tuneloop.base.errors import MachineError
from tuneloop.data.augmenting import endpoint
from tuneloop.data.augmenting.endpoint import Endpoint, elsewhere, notice

CHAT = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def server() -> Iterator[Server]:
    with running(Server()) as one:
        yield one


def chat(server: Server, **more: Any) -> Endpoint:
    return Endpoint(f"{server.url}/v1", "big", **{"key": "secret", "wait": 0.01, **more})


def test_answers_come_in_order_and_the_key_goes_along(server: Server) -> None:
    asked = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"question {n}"}] for n in range(9)
    ]
    assert chat(server).answer(asked) == [f"You said: question {n}" for n in range(9)]
    path, body, key = server.seen[0]
    assert (path, body["model"], key) == ("/v1/chat/completions", "big", "Bearer secret")
    assert len(body["messages"]) == 2
    assert "secret" not in repr(chat(server))
    Endpoint(f"{server.url}/v1/", "big").answer([CHAT])
    assert server.seen[-1][0] == "/v1/chat/completions"
    assert server.seen[-1][2] == ""


def test_an_answer_that_breaks_off_is_none_and_a_thought_is_no_answer(server: Server) -> None:
    server.finish = "length"
    assert chat(server).answer([CHAT]) == [""]
    server.finish = "stop"
    thought = {"choices": [{"message": {"content": "<think>\nHm.\n</think>\n\nYes."}, "finish_reason": "stop"}]}
    empty = {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}
    server.plan = [(200, {}, json.dumps(thought).encode()), (200, {}, json.dumps(empty).encode())]
    assert chat(server, parallel=1).answer([CHAT, CHAT]) == ["Yes.", ""]


def test_translation_with_and_without_a_model(server: Server) -> None:
    libre = Endpoint(server.url, key="secret", wait=0.01)
    assert libre.translate(["你好", "再见"], "zh", "en") == ["zh>en: 你好", "zh>en: 再见"]
    body = {"q": "你好", "source": "zh", "target": "en", "format": "text", "api_key": "secret"}
    assert ("/translate", body) in [seen[:2] for seen in server.seen]
    (said,) = chat(server).translate(["你好"], "zh", "en")
    assert "English" in said
    assert said.endswith("你好")


def test_a_busy_server_is_asked_again_when_it_wishes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(endpoint.time, "sleep", slept.append)
    server.plan = [(429, {"Retry-After": "7"}, b"slow down"), (429, {"Retry-After": "9999"}, b""), (500, {}, b"oops")]
    assert chat(server).answer([CHAT]) == ["You said: Hello"]
    assert slept == [7.0, endpoint.LONGEST_WAIT, 0.04]
    assert len(server.seen) == 4


@pytest.mark.parametrize("tongue", ["en", "zh"])
@pytest.mark.parametrize(
    ("replies", "told", "tries"),
    [
        ([(500, {}, b"down")] * 9, "HTTP 500 down", 4),
        ([(401, {}, b'{"error": "bad key\x1b[31m"}')], "HTTP 401", 1),
        ([(307, {"Location": "http://127.0.0.1:1/v1"}, b"")], "HTTP 307", 1),
        ([(200, {}, b"<html>login</html>")], "<html>login</html>", 1),
        ([(200, {}, b'{"choices": []}')], "choices", 1),
        ([(200, {}, b'{"choices": [{"message": {"content": [1]}}]}')], "choices", 1),
        ([(200, {}, b"[1]")], "[1]", 1),
    ],
    ids=["500", "401", "redirect", "html", "no choice", "no text", "no object"],
)
def test_a_server_that_will_not(server: Server, tongue: str, replies: Any, told: str, tries: int) -> None:
    language.use(tongue)
    server.plan = list(replies)
    with pytest.raises(MachineError) as caught:
        chat(server).answer([CHAT])
    busy = told.startswith("HTTP 500")
    assert caught.value.code == ("TL-MACHINE-ENDPOINT-BUSY" if busy else "TL-MACHINE-ENDPOINT")
    assert ("TUNELOOP_ENDPOINT_KEY" in caught.value.do) != busy, "a key does not help a busy server"
    assert "prepare.augment" not in str(caught.value)
    assert told in caught.value.what
    assert "\x1b" not in str(caught.value)
    assert any("\u4e00" <= c <= "\u9fff" for c in caught.value.do) == (tongue == "zh")
    assert len(server.seen) == tries


def test_no_answer_in_time(server: Server) -> None:
    server.silent = 1.0
    began = time.monotonic()
    with pytest.raises(MachineError, match="no answer in time"):
        chat(server, timeout=0.05).answer([CHAT])
    assert time.monotonic() - began < 5
    assert len(server.seen) == 4


def test_nobody_is_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(MachineError, match="refused"):
        Endpoint(f"http://127.0.0.1:{port}/v1", "big", wait=0.01).answer([CHAT])


def test_a_proxy_is_not_asked_for_this_machine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert chat(server).answer([CHAT]) == ["You said: Hello"]


def test_offline_asks_this_machine_only(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_OFFLINE", "1")
    assert chat(server).answer([CHAT]) == ["You said: Hello"]
    with pytest.raises(MachineError, match="TUNELOOP_OFFLINE"):
        Endpoint("https://llm.example.com/v1", "big").answer([CHAT])


@pytest.mark.parametrize(
    ("url", "host"),
    [("http://localhost:8000/v1", ""), ("http://127.3.2.1/v1", ""), ("http://[::1]:80", ""), (None, ""), ("", ""),
     ("https://api.example.com/v1", "api.example.com"), ("http://192.168.1.5/v1", "192.168.1.5"),
     ("http://localhost.example.com", "localhost.example.com"), ("http://127.0.0.1.example.com", "127.0.0.1.example.com")],
)  # fmt: skip
def test_what_is_this_machine(url: str | None, host: str) -> None:
    assert elsewhere(url) == host
    assert (host in notice(url)) if host else notice(url) == ""
