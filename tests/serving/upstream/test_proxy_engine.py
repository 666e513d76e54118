"""ProxyEngine over llama.cpp's own server, and over several upstreams of which some are down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.ggufs import tiny_gguf
from tests.serving.upstreams import LlamaServer, collect, delta, event, head, llama_server, on_loop, scripted, text_of
from tuneloop.base.errors import ServeError
from tuneloop.base.records import Sampling
from tuneloop.gguf.llamacpp import LlamaCpp
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.engine import Query
from tuneloop.serving.upstream import backend
from tuneloop.serving.upstream.proxy_engine import ProxyEngine, proxy_engine, upstream_models
from tuneloop.serving.upstream.upstream import Upstream

CHAT = [{"role": "user", "content": "Which way?"}]
LONG = Sampling(temperature=1.0, seed=11, logit_bias=((0, -100.0), (2, -100.0)))
GOOD = head() + delta("Hello") + delta(finish="stop") + b"data: [DONE]\n\n"
BUSY = head("503 Unavailable", "application/json", "Retry-After: 4") + b"{}"
NOWHERE = "http://127.0.0.1:9/v1"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf"))[0]


@pytest.fixture(scope="module")
def llama(gguf: Path) -> Iterator[LlamaServer]:
    with llama_server(gguf) as server:
        yield server


def proxy(*urls: str) -> ProxyEngine:
    return ProxyEngine([Upstream(url) for url in urls], lambda text: None)


async def ask(engine: ProxyEngine, **query: Any) -> Any:
    return await collect(await engine.submit(Query(**{"purpose": "chat", "model": "tiny", "chat": CHAT, **query})))


@on_loop
async def test_an_identity_is_of_addresses_and_what_they_list() -> None:
    async with scripted(GOOD) as one, scripted(GOOD) as two:
        engines = [proxy(one.url), proxy(one.url), proxy(two.url), proxy(two.url, one.url), proxy(one.url, two.url)]
        first, same, other, *pair = [await engine.identity("m") for engine in engines]
        assert first == same
        assert len({first, other, *pair}) == 3
        assert pair[0] == pair[1]
        assert await engines[0].identity("nobody") is None
        one.models = {"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 128}]}
        again = proxy(one.url)
        assert await again.identity("m") != first
        for engine in (*engines, again):
            await engine.shut()


def test_llama_cpp_s_server_says_through_it_what_it_says_itself(llama: LlamaServer, gguf: Path) -> None:
    """Of whole characters: streamed and not, it does not do the same with halves of them, which a random model writes."""
    from openai import OpenAI

    with LlamaCpp(gguf, vocab_only=True) as reader:
        texts = reader.detokenize([[n] for n in range(reader.vocabulary)])
        bias = {n: -100.0 for n, text in enumerate(texts) if "\ufffd" in text or n in reader.ends()}
    client = OpenAI(base_url=llama.url, api_key="none")
    asked: dict[str, Any] = {"model": "tiny", "temperature": 0, "seed": 5, "max_tokens": 12, "top_p": 0.9}
    asked["logit_bias"] = {str(n): number for n, number in bias.items()}
    for _ in range(2):  # the second time its prompt is at hand, as it is then for us: the same sums in the same order
        itself = client.chat.completions.create(messages=CHAT, logprobs=True, top_logprobs=2, **asked)  # type: ignore[call-overload]
    for _ in range(2):
        text = client.completions.create(prompt=[9, 8, 7], **asked)
    client.close()

    async def through() -> None:
        engine = proxy(llama.url)
        assert [(model.name, model.context) for model in await engine.models()] == [("tiny", 256)]
        assert engine.ready
        sampling = Sampling(seed=5, top_p=0.9, logit_bias=tuple(bias.items()))
        stream = await engine.submit(Query("chat", "tiny", chat=CHAT, sampling=sampling, max_new_tokens=12, logprobs=2))
        pieces = await collect(stream)
        for choice in itself.choices:
            assert text_of(pieces, choice.index) == choice.message.content
            scores = [score for piece in pieces if piece.choice == choice.index for score in piece.scores]
            assert [score.text for score in scores] == [one.token for one in choice.logprobs.content]
            assert all(len(score.likeliest) == 2 for score in scores)
        assert stream.prompt_tokens == itself.usage.prompt_tokens
        assert {piece.finish for piece in pieces if piece.finish} <= {"stop", "length"}
        assert [piece.tokens for piece in pieces if piece.finish] == [itself.usage.completion_tokens]
        several = await ask(engine, n=3, sampling=LONG, max_new_tokens=9)
        assert sorted(piece.choice for piece in several if piece.finish) == [0, 1, 2]
        assert sum(piece.tokens for piece in several) == 27
        assert len({text_of(several, n) for n in range(3)}) == 3
        again = await ask(engine, purpose="text", chat=[], prompt=(9, 8, 7), sampling=sampling, max_new_tokens=12)
        assert text_of(again) == text.choices[0].text
        assert again[-1].tokens == text.usage.completion_tokens
        for fields, param in (
            ({"purpose": "vector", "prompt": "x"}, None),
            ({"purpose": "text", "prompt": (10**8,)}, None),
        ):
            with pytest.raises(ServeError, match="TL-SERVE-UPSTREAM-REFUSED") as caught:
                await ask(engine, **fields)
            assert (caught.value.facts["status"], caught.value.facts["param"]) == (400, param)
        with pytest.raises(ServeError, match="TL-SERVE-MODEL") as caught:
            await ask(engine, model="tinny")
        assert caught.value.facts["known"] == "tiny"
        await asyncio.to_thread(engine.close)
        with pytest.raises(ServeError, match="TL-SERVE-CLOSING"):
            await ask(engine)

    asyncio.run(through())


def test_one_of_two_upstreams_is_killed_in_the_middle(gguf: Path, llama: LlamaServer) -> None:
    """Its answers end with an error, the other's go on, and what comes next is answered by the other."""

    async def run(doomed: LlamaServer) -> None:
        engine = proxy(doomed.url, llama.url)
        await engine.models()
        while not all(one.healthy for one in engine._backends):
            await asyncio.sleep(0.01)
        killed = False

        async def watched(n: int) -> str:
            nonlocal killed
            query = Query("text", "tiny", prompt=(9, 8, 7 + n), max_new_tokens=110, sampling=LONG)
            try:
                async for _ in await engine.submit(query):
                    if not killed and all(one.streams for one in engine._backends):
                        killed = True
                        doomed.process.kill()
            except ServeError as error:
                return error.code
            return "answered"

        ends = await asyncio.gather(*(watched(n) for n in range(8)))
        assert killed
        assert set(ends) == {"answered", "TL-SERVE-UPSTREAM"}
        for _ in range(3):
            assert text_of(await ask(engine, max_new_tokens=4, sampling=LONG))
        assert engine.ready
        assert engine.gauges()["upstreams_healthy"] == 1
        assert engine.pending == 0
        await asyncio.to_thread(engine.close)

    with llama_server(gguf) as doomed:
        asyncio.run(run(doomed))


@on_loop
async def test_the_least_busy_is_asked() -> None:
    gate = asyncio.Event()

    async def slow(reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(head() + delta("Hello"))
        await gate.wait()
        writer.write(delta(finish="stop"))

    async with scripted(slow) as one, scripted(slow) as two:
        engine = proxy(one.url, two.url)
        await asyncio.gather(*(each.check() for each in engine._backends))
        streams = [await engine.submit(Query("chat", "m", chat=CHAT)) for _ in range(6)]
        assert (one.requests, two.requests) == (3, 3)
        gate.set()
        assert [text_of(await collect(stream)) for stream in streams] == ["Hello"] * 6
        await engine.shut()


@on_loop
async def test_only_what_did_nothing_is_sent_again() -> None:
    for content, again in ((BUSY, True), (head("502 Bad Gateway") + b"", True), (head("429 Slow") + b"{}", True),
                           (head("500 Oops") + b"", False), (head() + delta("He"), False), (b"", False)):  # fmt: skip
        async with scripted(content) as bad, scripted(GOOD) as good:
            engine = proxy(bad.url, good.url)
            await asyncio.gather(*(each.check() for each in engine._backends))
            engine._backends[1].used_at = time.monotonic()  # the bad one first
            try:
                outcome = text_of(await ask(engine, model="m"))
            except ServeError as error:
                outcome = error.code
            assert (outcome, bad.requests, good.requests) == (("Hello", 1, 1) if again else ("TL-SERVE-UPSTREAM", 1, 0))
            assert engine.pending == 0
            assert [each.streams for each in engine._backends] == [0, 0]
            await engine.shut()


@on_loop
async def test_where_all_are_busy_or_down_the_client_hears_when_to_come_back() -> None:
    async with scripted(BUSY) as one, scripted(BUSY) as two:
        engine = proxy(one.url, two.url)
        with pytest.raises(ServeError, match="TL-SERVE-UPSTREAM-BUSY") as caught:
            await ask(engine, model="m")
        assert (caught.value.facts["status"], caught.value.facts["seconds"]) == (503, 4)
        await engine.shut()
    engine = proxy(NOWHERE, NOWHERE)
    for question in (engine.models(), ask(engine, model="m")):
        with pytest.raises(ServeError, match="TL-SERVE-DOWN") as caught:
            await question
        assert caught.value.facts["status"] == 503
    assert not engine.ready
    await engine.shut()


@on_loop
async def test_one_that_comes_back_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "FIRST_WAIT", 0.05)
    notes: list[str] = []
    async with scripted(GOOD) as server:
        engine = ProxyEngine([Upstream(server.url)], notes.append)
        listed, server.models = server.models, b"HTTP/1.1 500 Oops\r\n\r\n"
        with pytest.raises(ServeError, match="TL-SERVE-DOWN"):
            await ask(engine, model="m")
        server.models = listed
        await asyncio.sleep(0.1)
        assert text_of(await ask(engine, model="m")) == "Hello"
        assert len(notes) == 2
        await engine.shut()


@on_loop
async def test_the_models_of_all_are_listed_once_and_asked_where_they_are() -> None:
    def listing(*names: str) -> Any:
        return {
            "data": [{"id": name, "max_model_len": 64, "parent": "base" if name == "lora" else None} for name in names]
        }

    async with scripted(GOOD, listing("both", "left")) as one, scripted(GOOD, listing("both", "lora")) as two:
        engine = proxy(one.url, two.url)
        await asyncio.gather(*(each.check() for each in engine._backends))
        models = {model.name: model.base for model in await engine.models()}
        assert models == {"both": None, "left": None, "lora": "base"}
        for _ in range(3):
            await ask(engine, model="lora")
        assert (one.requests, two.requests) == (0, 3)
        assert two.bodies[0]["model"] == "lora"
        await engine.shut()


@pytest.mark.parametrize(
    "models", [{}, [], {"data": 1}, {"data": [{"id": 1}]}, b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", b"", event({})]
)
@on_loop
async def test_a_list_of_models_that_is_none_is_an_upstream_that_is_down(models: Any) -> None:
    async with scripted(GOOD, models) as server:
        engine = proxy(server.url)
        with pytest.raises(ServeError, match="TL-SERVE-DOWN"):
            await engine.models()
        await engine.shut()


@on_loop
async def test_embeddings_and_calls_come_through() -> None:
    reply = b'{"data": [{"embedding": [1, -0.5]}], "usage": {"prompt_tokens": 2}}'
    async with scripted(head(kind="application/json") + reply) as server:
        engine = proxy(server.url)
        stream = await engine.submit(Query("vector", "m", prompt="x"))
        (piece,) = await collect(stream)
        assert (piece.vector, stream.prompt_tokens) == ((1.0, -0.5), 2)
        await engine.shut()
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}}
    rest = {"index": 0, "function": {"arguments": '{"x": 1}'}}
    content = (
        head()
        + delta(reasoning_content="hm")
        + delta(tool_calls=[call])
        + delta(tool_calls=[rest])
        + delta(finish="tool_calls")
    )
    async with scripted(content) as server:
        engine = proxy(server.url)
        chat = [*CHAT, {"role": "assistant", "content": "", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {"q": "好"}}}]},
                {"role": "tool", "content": "1", "tool_call_id": "a"}]  # fmt: skip
        tools = ({"type": "function", "function": {"name": "look"}},)
        pieces = await ask(engine, model="m", chat=chat, tools=tools, tool_choice="look", thinking=False)
        assert [piece.thought for piece in pieces if piece.thought] == ["hm"]
        calls = [one for piece in pieces for one in piece.calls]
        assert (calls[0].id, calls[0].name, calls[1].arguments) == ("c1", "look", '{"x": 1}')
        assert pieces[-1].finish == "tool_calls"
        body = server.bodies[0]
        assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"q": "好"}'
        assert body["tool_choice"] == {"type": "function", "function": {"name": "look"}}
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        await engine.shut()


def test_the_recipe_s_upstreams_with_their_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(**settings: Any) -> ProxyEngine:
        return proxy_engine("", ServePart(engine="proxy", **settings), tmp_path, print)

    monkeypatch.setenv("TUNELOOP_UPSTREAM_KEY", "of-the-environment")
    assert [one.upstream._key for one in made(upstreams=[NOWHERE, NOWHERE])._backends] == ["of-the-environment"]
    (tmp_path / "key").write_text("of-the-file\n", encoding="utf-8")
    engine = made(upstreams=[NOWHERE], upstream_key_file=str(tmp_path / "key"))
    assert engine._backends[0].upstream._key == "of-the-file"
    for settings, code in (
        ({}, "TL-SERVE-UPSTREAM-URL"),
        ({"upstreams": [NOWHERE], "upstream_key_file": str(tmp_path / "no")}, "TL-SERVE-KEY-FILE"),
    ):
        with pytest.raises(ServeError, match=code):
            made(**settings)
    assert upstream_models(ServePart(upstreams=[NOWHERE]), lambda text: None) == []
    engine.close()
