"""The server over a real socket: the official client, the key, refusals, and clients that hang up."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi.routing import APIRoute

from tuneloop.base.errors import MachineError, ServeError
from tuneloop.inference.generate import Answerer
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import ServePart
from tuneloop.serving import api
from tuneloop.serving.admission import admission_steps
from tuneloop.serving.engine import Engine
from tuneloop.serving.torch_engine import TorchEngine

NAME = "tiny:v1"
KEY = "s3cret-ключ"
CHAT: list[Any] = [{"role": "user", "content": "Who are you?"}]


class Pace:
    """Counts the model's tokens and makes each take `seconds`."""

    def __init__(self, model: Any) -> None:
        self.tokens, self.seconds = 0, 0.0
        model.register_forward_pre_hook(self._wait)

    def _wait(self, *_: Any) -> None:
        self.tokens += 1
        time.sleep(self.seconds)


@dataclass
class Served:
    url: str
    engine: TorchEngine
    pace: Pace

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30, **options)

    def post(self, body: Any, **options: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(f"{self.url}/v1/chat/completions", content=content, timeout=30, **options)

    def until(self, condition: Any) -> None:
        end = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.005)


def app_of(engine: Engine, key: str | None, queue: int = 8) -> Any:
    settings = ServePart(queue=queue)
    steps = admission_steps(settings, engine, key)
    return api.create_app(engine, model_name=NAME, admission=steps, max_new_tokens=settings.max_new_tokens)


@contextmanager
def serving(answerer: Answerer, *, key: str | None = None, queue: int = 8) -> Iterator[Served]:
    """A real server on a free loopback port, in a thread."""
    pace = Pace(answerer.model)
    engine = TorchEngine(answerer)
    bound = api.listen("127.0.0.1", 0)
    app = app_of(engine, key, queue)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{bound.getsockname()[1]}", engine, pace)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
        assert not engine.open


def make(tiny_model: Path) -> Answerer:
    answerer = Answerer(load_model(tiny_model), load_tokenizer(tiny_model))
    answerer.stops = frozenset()  # a random model might end early; these tests need answers of known length
    return answerer


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[Served]:
    with serving(make(tiny_model)) as made:
        yield made


@pytest.fixture
def slow(served: Served) -> Iterator[Served]:
    served.pace.seconds = 0.02
    yield served
    served.pace.seconds = 0.0
    served.until(lambda: not served.engine.busy and not served.engine.waiting)


def test_the_official_client(served: Served) -> None:
    reply = served.client().chat.completions.create(model=NAME, messages=CHAT, max_tokens=12)
    expected = served.engine._counter.answer([CHAT], max_new_tokens=12)[0]
    assert reply.choices[0].message.content == expected.text
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (expected.prompt_tokens, 12)
    assert reply.usage.total_tokens == expected.prompt_tokens + 12
    assert reply.model == NAME
    assert abs(reply.created - time.time()) < 60


def test_the_official_client_streaming(served: Served) -> None:
    whole = served.client().chat.completions.create(model=NAME, messages=CHAT, max_tokens=40)
    chunks = list(
        served.client().chat.completions.create(
            model=NAME, messages=CHAT, max_tokens=40, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1
    assert len(chunks) > 5


def test_what_is_on_the_wire(served: Served) -> None:
    with httpx.stream(
        "POST", f"{served.url}/v1/chat/completions", timeout=30,
        json={"model": NAME, "messages": CHAT, "max_tokens": 30, "temperature": 1.2, "seed": 5, "stream": True},
    ) as reply:  # fmt: skip
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-cache"
        content = reply.read()
    events = content.decode("utf-8").split("\n\n")  # strict: a broken character would raise
    assert events[-1] == ""
    assert events[-2] == "data: [DONE]"
    assert all(e.startswith("data: ") for e in events[:-1])
    assert "usage" not in events[0]


def test_the_asynchronous_client_side_by_side(served: Served) -> None:
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            asked = [
                client.chat.completions.create(model=NAME, messages=CHAT, max_tokens=8, temperature=1.0, seed=s)
                for s in (1, 2, 1)
            ]
            return [r.choices[0].message.content or "" for r in await asyncio.gather(*asked)]

    one, two, three = asyncio.run(main())
    assert one == three != two


def test_stop_texts(served: Served) -> None:
    full = served.client().chat.completions.create(model=NAME, messages=CHAT, max_tokens=40).choices[0]
    text = full.message.content or ""
    stop = text[len(text) // 2 :][:3]
    cut = served.client().chat.completions.create(model=NAME, messages=CHAT, max_tokens=40, stop=stop).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.message.content == text[: text.index(stop)]


def test_models(served: Served) -> None:
    assert [m.id for m in served.client().models.list()] == [NAME]
    assert served.client().models.retrieve(NAME).owned_by == "tuneloop"
    with pytest.raises(openai.NotFoundError):
        served.client().models.retrieve("gpt-4o")


def test_health(served: Served) -> None:
    assert httpx.get(f"{served.url}/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, "TL-SERVE-REQUEST", None),
        (b"", 400, "TL-SERVE-REQUEST", None),
        (b"\xff\xfe", 400, "TL-SERVE-REQUEST", None),
        (b"[" * 100_000, 400, "TL-SERVE-REQUEST", None),
        ({"model": NAME}, 400, "TL-SERVE-REQUEST", "messages"),
        ({"model": NAME, "messages": CHAT, "temperature": 9}, 400, "TL-SERVE-REQUEST", "temperature"),
        ({"model": NAME, "messages": CHAT, "n": 2}, 400, "TL-SERVE-UNSUPPORTED", "n"),
        ({"model": NAME, "messages": CHAT, "max_tokens": 10_000}, 400, "TL-SERVE-ROOM", "max_tokens"),
        ({"model": NAME, "messages": [{"role": "user", "content": "x " * 3000}]}, 400, "TL-SERVE-CONTEXT", "messages"),
        ({"model": "gpt-4o", "messages": CHAT}, 404, "TL-SERVE-MODEL", "model"),
        (b" " * (api.MOST_BYTES + 1), 413, "TL-SERVE-BODY", None),
    ],
    ids=lambda value: None if isinstance(value, dict | bytes) else str(value),
)
def test_refusals(served: Served, body: Any, status: int, code: str, param: str | None) -> None:
    reply = served.post(body)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"]


def test_a_chat_that_the_template_refuses(tiny_model: Path) -> None:
    answerer = make(tiny_model)
    answerer.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with serving(answerer) as refusing:
        reply = refusing.post({"model": NAME, "messages": CHAT})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "TL-DATA-TEMPLATE"


def test_the_clients_own_error_types(served: Served) -> None:
    client = served.client()
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=NAME, messages=CHAT, n=3)
    assert bad.value.code == "TL-SERVE-UNSUPPORTED"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=CHAT)
    assert missing.value.code == "TL-SERVE-MODEL"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=NAME, input="x")


def test_unknown_paths_and_methods(served: Served) -> None:
    reply = httpx.get(f"{served.url}/v2/nothing")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "TL-SERVE-ROUTE")
    reply = httpx.get(f"{served.url}/v1/chat/completions")
    assert (reply.status_code, reply.json()["error"]["code"]) == (405, "TL-SERVE-METHOD")
    assert reply.headers["allow"] == "POST"
    for path in ("docs", "redoc", "openapi.json"):
        assert httpx.get(f"{served.url}/{path}").status_code == 404


def test_a_client_that_hangs_up_while_streaming(slow: Served) -> None:
    stream = slow.client().chat.completions.create(
        model=NAME, messages=CHAT, max_tokens=400, temperature=1.0, seed=1, stream=True
    )
    next(stream)
    slow.until(lambda: slow.engine.busy)
    at = slow.pace.tokens
    stream.close()
    slow.until(lambda: not slow.engine.busy)
    assert slow.pace.tokens < at + 100


def test_a_client_that_hangs_up_while_it_waits_for_a_whole_answer(slow: Served) -> None:
    body = {"model": NAME, "messages": CHAT, "max_tokens": 400, "temperature": 1.0, "seed": 1}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{slow.url}/v1/chat/completions", json=body, timeout=0.3)
    at = slow.pace.tokens
    slow.until(lambda: not slow.engine.busy)
    assert slow.pace.tokens < at + 100


def test_a_client_that_hangs_up_in_the_queue(slow: Served) -> None:
    body = {"model": NAME, "messages": CHAT, "max_tokens": 400, "temperature": 1.0, "seed": 1}
    first = slow.client().chat.completions.create(**body, stream=True)
    next(first)
    slow.until(lambda: slow.engine.busy)
    for stream in (True, False):
        content = json.dumps({**body, "stream": stream}).encode()
        with socket.create_connection(slow.url.removeprefix("http://").split(":")) as raw:  # type: ignore[arg-type]
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
            raw.sendall(head.encode() + content)
            slow.until(lambda: slow.engine.waiting == 1)
        slow.until(lambda: slow.engine.waiting == 0)
        assert slow.engine.busy
    first.close()


def test_the_server_answers_others_while_it_generates(slow: Served) -> None:
    stream = slow.client().chat.completions.create(model=NAME, messages=CHAT, max_tokens=200, stream=True)
    next(stream)
    began = time.monotonic()
    for _ in range(10):
        assert httpx.get(f"{slow.url}/healthz").status_code == 200
    assert slow.post({"model": NAME, "messages": CHAT, "max_tokens": 10_000}).status_code == 400
    assert slow.engine.busy
    assert time.monotonic() - began < 4
    stream.close()


def test_a_full_queue(tiny_model: Path) -> None:
    with serving(make(tiny_model), queue=0) as full:
        full.pace.seconds = 0.02
        stream = full.client().chat.completions.create(model=NAME, messages=CHAT, max_tokens=400, stream=True)
        next(stream)
        for streaming in (False, True):
            reply = full.post({"model": NAME, "messages": CHAT, "stream": streaming})
            assert reply.status_code == 503
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.json()["error"]["code"] == "TL-SERVE-FULL"
        stream.close()


def test_a_failure_after_the_first_byte_is_an_event(tiny_model: Path) -> None:
    answerer = make(tiny_model)
    with serving(answerer) as broken:

        def fail(*_: Any) -> None:
            if broken.pace.tokens > 5:
                raise RuntimeError("a kernel is missing")

        hook = answerer.model.register_forward_pre_hook(fail)
        with pytest.raises(openai.APIError) as caught:
            list(broken.client().chat.completions.create(model=NAME, messages=CHAT, max_tokens=50, stream=True))
        assert caught.value.code == "TL-SERVE-FAILED"
        broken.pace.tokens = 0
        reply = broken.post({"model": NAME, "messages": CHAT, "max_tokens": 50})
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "TL-SERVE-FAILED")
        hook.remove()
        assert broken.post({"model": NAME, "messages": CHAT, "max_tokens": 2}).status_code == 200


def test_every_route_wants_the_key(tiny_model: Path) -> None:
    """All routes of the application are walked: one that is added later is tested here without anybody's thought."""
    engine = TorchEngine(make(tiny_model))
    routes = [r for r in app_of(engine, KEY).routes]
    engine.close()
    assert {getattr(r, "path", "") for r in routes} >= {"/healthz", "/v1/models", "/v1/chat/completions"}
    for route in routes:
        assert isinstance(route, APIRoute), f"{route} would pass by the dependencies"
    with serving(make(tiny_model), key=KEY) as locked:
        for route in routes:
            assert isinstance(route, APIRoute)
            for method in route.methods:
                url = locked.url + route.path.replace("{name:path}", NAME)
                basic: dict[str, Any] = {"Authorization": f"Basic {KEY[:6]}"}
                for headers in ({}, bearer("wrong"), bearer(KEY[:-1]), {"Authorization": "Bearer"}, basic):
                    reply = httpx.request(method, url, headers=headers, content=b"{")
                    expected = 200 if route.path == "/healthz" else 401
                    assert reply.status_code == expected, (method, url, headers)
                    if expected == 401:
                        assert reply.json()["error"]["code"] == "TL-SERVE-KEY"
                        assert reply.headers["www-authenticate"] == "Bearer"


def bearer(key: str) -> dict[str, Any]:
    return {"Authorization": f"Bearer {key}".encode()}


def test_the_right_key(tiny_model: Path) -> None:
    with serving(make(tiny_model), key="right-key\n") as locked:
        client = openai.OpenAI(base_url=f"{locked.url}/v1", api_key="right-key", max_retries=0)
        assert client.chat.completions.create(model=NAME, messages=CHAT, max_tokens=2).choices
        assert httpx.get(f"{locked.url}/v1/models", headers={"Authorization": "bearer  right-key"}).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            locked.client().models.list()


def test_a_key_of_other_letters(tiny_model: Path) -> None:
    with serving(make(tiny_model), key=KEY) as locked:
        assert httpx.get(f"{locked.url}/v1/models", headers=bearer(KEY)).status_code == 200


def test_an_empty_key_is_no_key(tiny_model: Path) -> None:
    engine = TorchEngine(make(tiny_model))
    for key in ("", "  \n"):
        with pytest.raises(ServeError, match="TL-SERVE-KEY-EMPTY"):
            app_of(engine, key)
    engine.close()


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
