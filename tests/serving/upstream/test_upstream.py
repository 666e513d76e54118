"""The client of one server, against a socket that answers whatever it likes."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from tests.serving.upstreams import LISTED, collect, delta, event, head, on_loop, scripted, text_of
from tuneloop.base.errors import ServeError
from tuneloop.serving.engine import Piece, Query
from tuneloop.serving.upstream.proxy_engine import ProxyEngine
from tuneloop.serving.upstream.upstream import LONGEST_LINE, Upstream, checked_url

KEY = "sk-very-secret-1"
CHAT = Query("chat", "m", chat=[{"role": "user", "content": "Hi"}], max_new_tokens=9)
GOOD = delta("Hello") + delta(" you") + delta(finish="stop")
DONE = b"data: [DONE]\n\n"


async def answered(content: Any, query: Query = CHAT, **options: Any) -> list[Piece]:
    """What a proxy makes of an upstream's bytes; whatever ends it, nothing stays behind."""
    async with scripted(content) as server:
        engine = ProxyEngine([Upstream(server.url, KEY, **options)], lambda text: None)
        try:
            return await collect(await engine.submit(query))
        finally:
            assert engine.pending == 0
            await engine.shut()


async def failure(content: Any, query: Query = CHAT, **options: Any) -> ServeError:
    with pytest.raises(ServeError) as caught:
        await answered(content, query, **options)
    assert KEY not in str(caught.value) + repr(caught.value.facts)
    return caught.value


@on_loop
async def test_an_answer_in_any_pieces_is_the_same() -> None:
    usage = event({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 3}})
    content = GOOD.replace(b"\n\n", b"\r\n\r\n") + b": ping\n\n" + usage + DONE
    for step in (len(content), 1, 7):

        async def drip(reader: Any, writer: asyncio.StreamWriter, step: int = step) -> None:
            writer.write(head())
            for n in range(0, len(content), step):
                writer.write(content[n : n + step])
                await writer.drain()

        pieces = await answered(drip)
        assert text_of(pieces) == "Hello you"
        assert (pieces[-1].finish, pieces[-1].tokens) == ("stop", 3)


@pytest.mark.parametrize("content", [
    b"", b"HTTP/1.1 200 OK\r\n", b"\x00\xff" * 50, b"SSH-2.0-OpenSSH_9\r\n", head() + b"",
    head() + GOOD[:40], head() + delta("Hello"), head() + delta("Hello") + DONE, head() + DONE,
    head() + event(b"{") + DONE, head() + event(b"[]"), head() + event(b'{"choices": 1}'), head() + event({}),
    head() + event({"choices": ["x"]}), head() + event({"choices": [{"index": 7, "delta": {}}]}),
    head() + event({"choices": [{"index": True, "delta": {}}]}), head() + delta(finish="abort") + DONE,
    head() + event({"choices": [{"index": 0, "delta": {"content": 5}}]}), head() + event({"choices": [{"index": 0}]}),
    head() + event(b'{"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 9999}]}}]}'),
    head() + event(b'{"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": {"content": [{"token": "x", "logprob": NaN}]}}]}'),
    head() + event(b"[" * 100_000), head("200 OK", "text/html") + b"<html>", head("200 OK", "application/json") + b"{}",
    head("200 OK", "text/event-stream", "Content-Encoding: gzip") + GOOD, head("418 I'm a teapot") + b"",
    head("200 OK", "text/event-stream", "Content-Length: 5000") + GOOD, head("500 Oops", "application/json") + b"{}",
    head("200 OK", "text/event-stream", "Transfer-Encoding: chunked") + b"5\r\nHello", head("204 No Content"),
    b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
])  # fmt: skip
@on_loop
async def test_whatever_is_no_answer_is_a_coded_error(content: bytes) -> None:
    error = await failure(content)
    assert (error.code, error.facts["status"]) == ("TL-SERVE-UPSTREAM", 502)


@on_loop
async def test_an_endless_line_ends() -> None:
    sent = 0

    async def flood(reader: Any, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(head() + b"data: ")
        while True:
            writer.write(b"x" * 65536)
            sent += 65536
            await writer.drain()

    assert (await failure(flood)).code == "TL-SERVE-UPSTREAM"
    assert sent < 8 * LONGEST_LINE


@on_loop
async def test_silence_ends() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head() + delta("Hello"))
        await reader.read()

    error = await failure(silent, silence=0.3)
    assert (error.code, error.facts["status"]) == ("TL-SERVE-UPSTREAM", 504)


@on_loop
async def test_no_redirect_is_followed() -> None:
    async with scripted(head() + GOOD + DONE) as other:
        for status in ("301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"):
            error = await failure(head(status, "text/html", f"Location: {other.url}/chat/completions"))
            assert (error.code, error.facts["status"]) == ("TL-SERVE-UPSTREAM", 502)
        assert other.heads == []


@pytest.mark.parametrize(("status", "body", "code", "ours", "param"), [
    ("400 Bad Request", {"error": {"message": "top_p too large", "param": "top_p"}}, "TL-SERVE-UPSTREAM-REFUSED", 400, "top_p"),
    ("400 Bad Request", {"object": "error", "message": "too long", "param": "messages"}, "TL-SERVE-UPSTREAM-REFUSED", 400, "messages"),
    ("400 Bad Request", {"error": {"message": "x", "param": "<script>"}}, "TL-SERVE-UPSTREAM-REFUSED", 400, None),
    ("422 Unprocessable", {"detail": [{"loc": ["body", "n"]}]}, "TL-SERVE-UPSTREAM-REFUSED", 400, None),
    ("404 Not Found", {"error": "no such route"}, "TL-SERVE-UPSTREAM-REFUSED", 404, None),
    ("501 Not Implemented", {"error": {"message": "no embeddings"}}, "TL-SERVE-UPSTREAM-REFUSED", 400, None),
    ("401 Unauthorized", {"error": {"message": f"wrong key {KEY}"}}, "TL-SERVE-UPSTREAM", 502, None),
    ("403 Forbidden", {}, "TL-SERVE-UPSTREAM", 502, None),
    ("500 Error", {"error": {"message": f"key {KEY} met a fault"}}, "TL-SERVE-UPSTREAM", 502, None),
    ("503 Unavailable", {"error": {"message": "loading"}}, "TL-SERVE-UPSTREAM-BUSY", 503, None),
])  # fmt: skip
@on_loop
async def test_its_refusals_in_our_words(status: str, body: Any, code: str, ours: int, param: str | None) -> None:
    error = await failure(head(status, "application/json") + json.dumps(body).encode())
    assert (error.code, error.facts["status"], error.facts.get("param")) == (code, ours, param)
    assert "127.0.0.1" not in error.what  # where it is, is not the client's business


@on_loop
async def test_retry_after_is_passed_on_within_reason() -> None:
    for header, seconds in (("7", 7), ("soon", 1), ("99999999", 3600), ("-3", 1)):
        error = await failure(head("429 Too Many Requests", "application/json", f"Retry-After: {header}") + b"{}")
        assert (error.code, error.facts["status"], error.facts["seconds"]) == ("TL-SERVE-UPSTREAM-BUSY", 429, seconds)


@on_loop
async def test_an_error_after_the_first_byte_ends_the_answer() -> None:
    async with scripted(head() + delta("Hello") + event({"error": {"message": f"out of memory {KEY}"}})) as server:
        engine = ProxyEngine([Upstream(server.url, KEY)], lambda text: None)
        stream = await engine.submit(CHAT)
        assert (await anext(stream)).text == "Hello"
        with pytest.raises(ServeError, match="out of memory") as caught:
            await anext(stream)
        assert KEY not in str(caught.value)
        assert server.requests == 1
        assert engine.pending == 0
        await engine.shut()


@on_loop
async def test_what_comes_at_once_is_handed_on_as_one() -> None:
    call = b'{"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "f"}}]}}]}'
    parts = [delta("a"), delta("b"), event(call), delta("c"), delta("d"), delta("e"), delta(finish="stop"), DONE]
    pieces = await answered(head() + b"".join(parts))
    assert [(piece.text, piece.count, len(piece.calls)) for piece in pieces[:3]] == [
        ("ab", 2, 0),
        ("", 1, 1),
        ("cde", 3, 0),
    ]
    assert (pieces[-1].finish, pieces[-1].tokens) == ("stop", 6)


@on_loop
async def test_who_goes_away_hangs_up() -> None:
    async def endless(reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(head())
        while True:
            writer.write(delta("more "))
            await writer.drain()
            await asyncio.sleep(0.01)

    async with scripted(endless) as server:
        engine = ProxyEngine([Upstream(server.url)], lambda text: None)
        stream = await engine.submit(CHAT)
        await anext(stream)
        server.hung_up.clear()
        await stream.aclose()
        await asyncio.wait_for(server.hung_up.wait(), 10)
        await stream.aclose()
        server.hung_up.clear()
        task = asyncio.ensure_future(collect(await engine.submit(CHAT)))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert engine.pending == 0
        await engine.shut()


class Held:
    """A server whose connections are used again; it closes one at the request that is its `last`, with no answer."""

    def __init__(self, last: int, *, gone: bool = False) -> None:
        self._last, self._gone = last, gone
        self.asked: list[int] = []
        """By connection, the chats that came."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        place: int | None = None
        try:
            while True:
                request = (await reader.readuntil(b"\r\n\r\n")).lower()
                chat = request.startswith(b"post")
                if chat and place is None:
                    place = len(self.asked)
                    self.asked.append(0)
                if chat:
                    self.asked[place or 0] += 1
                    await reader.readexactly(int(request.partition(b"content-length:")[2].split(b"\r\n")[0]))
                    if self.asked[place or 0] == self._last:
                        self._listening.close() if self._gone else None
                        return
                content = GOOD + DONE if chat else json.dumps(LISTED).encode()
                kind = "text/event-stream" if chat else "application/json"
                close = "" if chat else "Connection: close\r\n"
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{close}".encode())
                writer.write(b"Content-Length: %d\r\n\r\n" % len(content) + content)
                await writer.drain()
                if not chat:
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def __aenter__(self) -> Upstream:
        self._listening = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return Upstream(f"http://127.0.0.1:{self._listening.sockets[0].getsockname()[1]}/v1")

    async def __aexit__(self, *error: object) -> None:
        self._listening.close()


async def chats(times: int, *upstreams: Upstream) -> None:
    """So many good answers, one after the other."""
    engine = ProxyEngine(upstreams, lambda text: None)
    try:
        for _ in range(times):
            assert text_of(await collect(await engine.submit(CHAT))) == "Hello you"
    finally:
        assert engine.pending == 0
        await engine.shut()


@on_loop
async def test_a_connection_is_used_again() -> None:
    server = Held(last=0)
    async with server as upstream:
        await chats(3, upstream)
    assert server.asked == [3]


@on_loop
async def test_what_is_lost_on_a_connection_that_was_idle_is_asked_once_more() -> None:
    server = Held(last=2)
    async with server as upstream:
        await chats(2, upstream)
    assert server.asked == [2, 1]


@on_loop
async def test_a_new_connection_without_an_answer_is_not_asked_again() -> None:
    server = Held(last=1)
    async with server as upstream:
        with pytest.raises(ServeError, match="TL-SERVE-UPSTREAM") as caught:
            await chats(1, upstream)
    assert caught.value.facts["status"] == 502
    assert server.asked == [1]


@on_loop
async def test_a_server_that_ends_with_a_request_takes_no_other_with_it() -> None:
    first, second = Held(last=2, gone=True), Held(last=0)
    async with first as one, second as other:
        with pytest.raises(ServeError, match="TL-SERVE-UPSTREAM"):
            await chats(3, one, other)  # they take turns
    assert (first.asked, second.asked) == ([2], [1])


@on_loop
async def test_the_key_goes_to_the_upstream_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with scripted(head() + GOOD + DONE) as server:
        upstream = Upstream(server.url, KEY)
        engine = ProxyEngine([upstream])
        await collect(await engine.submit(CHAT))
        await engine.shut()
        assert all(f"authorization: bearer {KEY}" in request.decode().lower() for request in server.heads)
        assert len(server.heads) == 2
    assert KEY not in repr(upstream)
    assert KEY not in caplog.text


@pytest.mark.parametrize("url", [
    "", "x", "ftp://h/v1", "http://", "http:///v1", "//h/v1", "http://user:pw@h/v1", "http://h/v1?key=1", "http://h/#x",
    "http://h:99999/v1", "http://h/a b", "file:///etc/passwd", "http://[::1/v1", "http://h/v1\r\nX: y",
])  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ServeError, match="TL-SERVE-UPSTREAM-URL") as caught:
        checked_url(url)
    assert "pw" not in str(caught.value)


def test_offline_only_this_machine_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_OFFLINE", "1")
    assert checked_url("http://localhost:11434/v1/") == "http://localhost:11434/v1"
    with pytest.raises(ServeError, match="TL-SERVE-UPSTREAM-URL"):
        checked_url("https://example.com/v1")
