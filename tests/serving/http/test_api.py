"""The server over a real socket: the key, refusals, cancellation, and what is on the wire. Its engine is written down;
`test_conformance.py` has a real one."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from fastapi.routing import APIRoute

from tests.serving.scripted import CHAT, NAME, ScriptedEngine, Served, app_of, serving
from tuneloop.base.errors import DataError, MachineError, ServeError, TuneloopError
from tuneloop.serving.access.scopes import OPEN
from tuneloop.serving.engine import Piece, Query
from tuneloop.serving.http import api

KEY = "s3cret-ключ"
CHATS, TEXTS, VECTORS, LABELS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(ScriptedEngine()) as one:
        yield one


def endless(query: Query) -> Iterator[Piece]:
    """An answer of 400 tokens to each choice, in turns."""
    for _ in range(400):
        for choice in range(query.n):
            yield Piece(choice, "x", tokens=1)
    for choice in range(query.n):
        yield Piece(choice, finish="length")


@pytest.fixture
def slow() -> Iterator[Served]:
    engine = ScriptedEngine(endless)
    engine.seconds = 0.02
    with serving(engine) as one:
        yield one


# What is on the wire


def test_events(served: Served) -> None:
    body = {"model": NAME, "messages": CHAT, "stream": True}
    with httpx.stream("POST", f"{served.url}{CHATS}", timeout=30, json=body) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-cache"
        content = reply.read()
    events = content.decode("utf-8").split("\n\n")  # strict: a broken character would raise
    assert events[-1] == ""
    assert events[-2] == "data: [DONE]"
    assert all(e.startswith("data: ") for e in events[:-1])
    chunks = [json.loads(e.removeprefix("data: ")) for e in events[:-2]]
    assert "usage" not in chunks[0]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "Hi there! 🪨"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_usage_comes_last_where_it_is_wanted(served: Served) -> None:
    for path, body in ((CHATS, {"messages": CHAT}), (TEXTS, {"prompt": "a"})):
        options = {"model": NAME, "stream": True, "stream_options": {"include_usage": True}}
        lines = served.post({**options, **body}, path).text.split("\n\n")
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"] == {
            "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 3},
        }  # fmt: skip


def test_vectors_in_both_encodings(served: Served) -> None:
    for text in ("a", ["a"], [1, 2], [[1, 2]]):
        reply = served.post({"model": "encoder", "input": text, "encoding_format": "base64"}, VECTORS).json()
        assert struct.unpack("<3f", base64.b64decode(reply["data"][0]["embedding"])) == (1.0, -2.0, 0.25)
        reply = served.post({"model": "encoder", "input": text}, VECTORS).json()
        assert reply["data"] == [{"object": "embedding", "index": 0, "embedding": [1.0, -2.0, 0.25]}]
        assert reply["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert served.engine.queries[-1].prompt == (1, 2)
    reply = served.post({"model": "encoder", "input": ["a", "b", "c"]}, VECTORS).json()
    assert [one["index"] for one in reply["data"]] == [0, 1, 2]


def test_labels(served: Served) -> None:
    reply = served.post({"model": "sorter", "input": "Fine."}, LABELS)
    assert reply.json() == {
        "object": "classification", "model": "sorter", "label": "good", "scores": {"good": 0.75, "bad": 0.25},
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }  # fmt: skip
    assert served.engine.queries[-1].chat == [{"role": "user", "content": "Fine."}]


def test_models_name_their_base(served: Served) -> None:
    models = {m["id"]: m for m in httpx.get(f"{served.url}/v1/models").json()["data"]}
    assert list(models) == [NAME, "tiny:adapter", "sorter", "encoder"]
    assert (models[NAME]["parent"], models[NAME]["root"], models[NAME]["max_model_len"]) == (None, NAME, 512)
    assert (models["tiny:adapter"]["parent"], models["tiny:adapter"]["root"]) == (NAME, NAME)
    assert httpx.get(f"{served.url}/v1/models/tiny:adapter").json() == models["tiny:adapter"]
    assert served.client().models.retrieve(NAME).owned_by == "tuneloop"
    reply = httpx.get(f"{served.url}/v1/models/tyni:adaptr")
    assert reply.status_code == 404
    assert "tiny:adapter" in reply.json()["error"]["message"]


def test_health_and_readiness() -> None:
    engine = ScriptedEngine()
    with serving(engine, key="k") as one:
        for path in ("/healthz", "/health", "/ready"):
            assert httpx.get(one.url + path).json() == {"status": "ok"}
        engine.ready = False
        assert httpx.get(f"{one.url}/healthz").status_code == 200
        reply = httpx.get(f"{one.url}/ready")
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "7")
        assert reply.json()["error"]["code"] == "TL-SERVE-LOADING"
        engine.open = False
        for path in ("/healthz", "/health", "/ready"):
            reply = httpx.get(one.url + path)
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "TL-SERVE-CLOSING")


# Refusals


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        (CHATS, b"{", 400, "TL-SERVE-REQUEST", None),
        (CHATS, b"", 400, "TL-SERVE-REQUEST", None),
        (CHATS, b"\xff\xfe", 400, "TL-SERVE-REQUEST", None),
        (CHATS, b"[" * 100_000, 400, "TL-SERVE-REQUEST", None),
        (CHATS, {"model": NAME}, 400, "TL-SERVE-REQUEST", "messages"),
        (CHATS, {"model": NAME, "messages": CHAT, "temperature": 9}, 400, "TL-SERVE-REQUEST", "temperature"),
        (CHATS, {"model": NAME, "messages": CHAT, "verbosity": "low"}, 400, "TL-SERVE-UNSUPPORTED", "verbosity"),
        (CHATS, {"model": "gpt-4o", "messages": CHAT}, 404, "TL-SERVE-MODEL", "model"),
        (CHATS, b" " * (api.MOST_BYTES + 1), 413, "TL-SERVE-BODY", None),
        (TEXTS, {"model": NAME}, 400, "TL-SERVE-REQUEST", "prompt"),
        (TEXTS, {"model": NAME, "prompt": []}, 400, "TL-SERVE-REQUEST", "prompt"),
        (TEXTS, {"model": NAME, "prompt": None}, 400, "TL-SERVE-REQUEST", "prompt"),
        (TEXTS, {"model": NAME, "prompt": [[]]}, 400, "TL-SERVE-REQUEST", "prompt.0"),
        (TEXTS, {"model": NAME, "prompt": [1, -1]}, 400, "TL-SERVE-REQUEST", "prompt.1"),
        (TEXTS, {"model": NAME, "prompt": [1, 2**31]}, 400, "TL-SERVE-REQUEST", "prompt.1"),
        (TEXTS, {"model": NAME, "prompt": ["a", 1]}, 400, "TL-SERVE-REQUEST", "prompt.1"),
        (TEXTS, {"model": NAME, "prompt": ["a"] * 2049}, 400, "TL-SERVE-REQUEST", "prompt"),
        (TEXTS, {"model": NAME, "prompt": "a", "max_tokens": 0}, 400, "TL-SERVE-REQUEST", "max_tokens"),
        (TEXTS, {"model": NAME, "prompt": "a", "logprobs": True}, 400, "TL-SERVE-REQUEST", "logprobs"),
        (TEXTS, {"model": NAME, "prompt": "a", "logprobs": 21}, 400, "TL-SERVE-REQUEST", "logprobs"),
        (TEXTS, {"model": NAME, "prompt": "a", "best_of": 2}, 400, "TL-SERVE-UNSUPPORTED", "best_of"),
        (TEXTS, {"model": NAME, "prompt": "a", "suffix": "b"}, 400, "TL-SERVE-UNSUPPORTED", "suffix"),
        (TEXTS, {"model": NAME, "prompt": "a", "messages": CHAT}, 400, "TL-SERVE-REQUEST", "messages"),
        (VECTORS, {"model": NAME, "input": "a"}, 400, "TL-SERVE-TASK", "model"),
        (VECTORS, {"model": "encoder", "input": "a", "dimensions": 8}, 400, "TL-SERVE-UNSUPPORTED", "dimensions"),
        (VECTORS, {"model": "encoder", "input": "a", "encoding_format": "hex"}, 400, "TL-SERVE-REQUEST", "encoding_format"),
        (VECTORS, {"model": "gpt-4o", "input": "a"}, 404, "TL-SERVE-MODEL", "model"),
        (LABELS, {"model": NAME, "input": "a"}, 400, "TL-SERVE-NO-LABELS", "model"),
        (LABELS, {"model": "sorter", "input": ""}, 400, "TL-SERVE-REQUEST", "input"),
        (LABELS, {"model": "sorter", "input": ["a"]}, 400, "TL-SERVE-REQUEST", "input"),
    ],
    ids=lambda value: None if isinstance(value, dict | bytes) else str(value),
)  # fmt: skip
def test_refusals(served: Served, path: str, body: Any, status: int, code: str, param: str | None) -> None:
    reply = served.post(body, path)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"]
    assert served.engine.pending == 0


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16"]
)
def test_bodies_that_are_not_sent_as_json(served: Served, kind: str) -> None:
    reply = served.post({"model": NAME, "messages": CHAT}, headers={"Content-Type": kind})
    assert (reply.status_code, reply.json()["error"]["code"]) == (415, "TL-SERVE-CONTENT-TYPE")


def test_a_body_that_says_that_it_is_too_large_is_not_read(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(f"POST {CHATS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {1 << 40}\r\n\r\n{{".encode())
        assert raw.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_errors_of_the_engine_name_the_field(served: Served) -> None:
    cases: list[tuple[str, dict[str, Any], TuneloopError, str]] = [
        (CHATS, {"messages": CHAT}, DataError("TL-DATA-TEMPLATE", error="roles must alternate"), "messages"),
        (CHATS, {"messages": CHAT}, ServeError("TL-SERVE-CONTEXT", tokens=9, context=4), "messages"),
        (TEXTS, {"prompt": "a"}, ServeError("TL-SERVE-CONTEXT", tokens=9, context=4), "prompt"),
        (TEXTS, {"prompt": [5]}, ServeError("TL-SERVE-TOKEN", token="x", id=5), "prompt"),
        (CHATS, {"messages": CHAT, "max_completion_tokens": 9}, ServeError("TL-SERVE-ROOM", param="max_tokens"), "max_completion_tokens"),
        (CHATS, {"messages": CHAT, "tools": [TOOL]}, ServeError("TL-SERVE-UNSUPPORTED", param="tools", got="[1]"), "tools"),
    ]  # fmt: skip
    for path, body, error, param in cases:
        for stream in (False, True):
            served.engine.refusal = error
            reply = served.post({"model": NAME, "stream": stream, **body}, path)
            served.engine.refusal = None
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
            served.engine.failure, served.engine.fails_after = error, 0
            reply = served.post({"model": NAME, "stream": stream, **body}, path)
            served.engine.failure = None
            assert f'"param":"{param}"' in reply.text


def test_the_clients_own_error_types(served: Served) -> None:
    client = served.client()
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=NAME, messages=CHAT, verbosity="low")
    assert (bad.value.code, bad.value.param) == ("TL-SERVE-UNSUPPORTED", "verbosity")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=CHAT)
    assert missing.value.code == "TL-SERVE-MODEL"
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model=NAME, input="x")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model=NAME, prompt="x")


def test_unknown_paths_and_methods(served: Served) -> None:
    reply = httpx.get(f"{served.url}/v2/nothing")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "TL-SERVE-ROUTE")
    reply = httpx.get(f"{served.url}{CHATS}")
    assert (reply.status_code, reply.json()["error"]["code"]) == (405, "TL-SERVE-METHOD")
    assert reply.headers["allow"] == "POST"
    for path in ("docs", "redoc"):
        assert httpx.get(f"{served.url}/{path}").status_code == 404
    assert httpx.get(f"{served.url}/openapi.json").json()["openapi"].startswith("3.1")


def test_a_full_queue() -> None:
    engine = ScriptedEngine(endless, capacity=1)
    engine.seconds = 0.02
    with serving(engine, queue=0) as full:
        stream = full.client().chat.completions.create(model=NAME, messages=CHAT, stream=True)
        next(stream)
        for path, body in (
            (CHATS, {"messages": CHAT}),
            (TEXTS, {"prompt": ["a", "b"]}),
            (VECTORS, {"model": "encoder", "input": "a"}),
        ):
            reply = full.post({"model": NAME, **body}, path)
            assert reply.status_code == 503
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.json()["error"]["code"] == "TL-SERVE-FULL"
        reply = full.post({"model": NAME, "messages": CHAT, "stream": True})
        assert reply.json()["error"]["code"] == "TL-SERVE-FULL"
        stream.close()


@pytest.mark.parametrize(
    "error",
    [
        ServeError("TL-SERVE-FAILED", error="a kernel is missing"),
        ServeError("TL-SERVE-DOWN", status=503, error="x", seconds=2),
    ],
)
def test_a_failure_after_the_first_byte_is_an_event(error: ServeError) -> None:
    engine = ScriptedEngine()
    with serving(engine) as broken:
        engine.failure = error
        with pytest.raises(openai.APIError) as caught:
            list(broken.client().chat.completions.create(model=NAME, messages=CHAT, stream=True))
        assert caught.value.code == error.code
        reply = broken.post({"model": NAME, "messages": CHAT})
        assert (reply.status_code, reply.json()["error"]["code"]) == (error.facts.get("status", 500), error.code)
        engine.failure = None
        assert broken.post({"model": NAME, "messages": CHAT}).status_code == 200
        assert engine.pending == 0


def test_a_fault_of_ours_is_an_error_without_its_words() -> None:
    engine = ScriptedEngine(lambda query: (_ for _ in ()).throw(ZeroDivisionError("secret")))
    with serving(engine) as broken:
        reply = broken.post({"model": NAME, "messages": CHAT})
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "TL-SERVE-FAILED")
        assert "secret" not in reply.text
        reply = broken.post({"model": NAME, "messages": CHAT, "stream": True})
        assert '"code":"TL-SERVE-FAILED"' in reply.text
        assert "secret" not in reply.text
        assert engine.pending == 0


# Clients that go away


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("path", "body"), [(CHATS, {"messages": CHAT}), (TEXTS, {"prompt": ["a", "b"]})])
def test_a_client_that_hangs_up_while_streaming(slow: Served, path: str, body: dict[str, Any], n: int) -> None:
    with httpx.stream("POST", slow.url + path, json={"model": NAME, "stream": True, "n": n, **body}) as reply:
        chunks = reply.iter_raw()
        next(chunks)
        assert slow.engine.pending
    slow.until(lambda: not slow.engine.pending)
    assert all(one.closed and one.given < 300 for one in slow.engine.streams)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHATS, {"messages": CHAT}),
        (TEXTS, {"prompt": ["a", "b"]}),
        (VECTORS, {"input": ["a", "b"], "model": "encoder"}),
    ],
)
def test_a_client_that_hangs_up_while_it_waits_for_a_whole_answer(
    slow: Served, path: str, body: dict[str, Any], n: int
) -> None:
    more = {} if path == VECTORS else {"n": n}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(slow.url + path, json={"model": NAME, **more, **body}, timeout=0.3)
    slow.until(lambda: not slow.engine.pending)
    assert all(one.closed and one.given < 300 for one in slow.engine.streams)


def test_a_client_that_hangs_up_while_it_sends(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(f"POST {CHATS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{{".encode())
    assert served.post({"model": NAME, "messages": CHAT}).status_code == 200


def test_the_server_answers_others_while_it_generates(slow: Served) -> None:
    stream = slow.client().chat.completions.create(model=NAME, messages=CHAT, stream=True)
    next(stream)
    with httpx.Client(base_url=slow.url) as client:  # a client of its own for each request takes longer than the answer
        began = time.monotonic()
        for _ in range(10):
            assert client.get("/healthz").status_code == 200
        assert client.post(CHATS, json={"model": NAME, "messages": CHAT, "n": 0}).status_code == 400
        assert slow.engine.pending == 1
        assert time.monotonic() - began < 4
    stream.close()


def test_the_asynchronous_client_is_cancelled_as_well(slow: Served) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{slow.url}/v1", api_key="none", max_retries=0) as client:
            task = asyncio.ensure_future(client.chat.completions.create(model=NAME, messages=CHAT, n=2))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    slow.until(lambda: not slow.engine.pending)


# The key


def test_every_route_wants_the_key() -> None:
    """All routes of the application are walked: one that is added later is tested here without anybody's thought."""
    routes = [r for r in app_of(ScriptedEngine(), KEY).routes]
    assert {getattr(r, "path", "") for r in routes} >= {*OPEN, "/v1/models", CHATS, "/metrics", "/openapi.json"}
    for route in routes:
        assert isinstance(route, APIRoute), f"{route} would pass by the dependencies"
    with serving(ScriptedEngine(), key=KEY) as locked:
        for route in routes:
            assert isinstance(route, APIRoute)
            for method in route.methods:
                url = locked.url + route.path.replace("{name:path}", NAME)
                basic: dict[str, Any] = {"Authorization": f"Basic {KEY[:6]}"}
                for headers in ({}, bearer("wrong"), bearer(KEY[:-1]), {"Authorization": "Bearer"}, basic):
                    reply = httpx.request(method, url, headers=headers, content=b"{")
                    expected = 200 if route.path in OPEN else 401
                    assert reply.status_code == expected, (method, url, headers)
                    if expected == 401:
                        assert reply.json()["error"]["code"] == "TL-SERVE-KEY"
                        assert reply.headers["www-authenticate"] == "Bearer"


def bearer(key: str) -> dict[str, Any]:
    return {"Authorization": f"Bearer {key}".encode()}


def test_the_right_key() -> None:
    with serving(ScriptedEngine(), key="right-key\n") as locked:
        client = openai.OpenAI(base_url=f"{locked.url}/v1", api_key="right-key", max_retries=0)
        assert client.chat.completions.create(model=NAME, messages=CHAT, max_tokens=2).choices
        assert httpx.get(f"{locked.url}/v1/models", headers={"Authorization": "bearer  right-key"}).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            locked.client().models.list()


def test_a_key_of_other_letters() -> None:
    with serving(ScriptedEngine(), key=KEY) as locked:
        assert httpx.get(f"{locked.url}/v1/models", headers=bearer(KEY)).status_code == 200


def test_an_empty_key_is_no_key() -> None:
    for key in ("", "  \n"):
        with pytest.raises(ServeError, match="TL-SERVE-KEY-EMPTY"):
            app_of(ScriptedEngine(), key)


# The socket, and what the server's process loads


def test_a_port_in_use() -> None:
    first = api.listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    with pytest.raises(MachineError) as caught:
        api.listen("127.0.0.1", port)
    first.close()
    assert caught.value.code == "TL-MACHINE-PORT"
    assert str(port) in str(caught.value)
    api.listen("127.0.0.1", port).close()


@pytest.mark.parametrize("host", ["256.1.1.1", "no.such.host.invalid", "192.0.2.1"])
def test_hosts_that_are_not_here(host: str) -> None:
    with pytest.raises(MachineError, match="TL-MACHINE-PORT"):
        api.listen(host, 0)


def test_the_server_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, tuneloop.serving.http.api, tuneloop.serving.answers.parsing; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
