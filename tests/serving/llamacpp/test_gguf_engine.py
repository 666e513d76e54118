"""GgufEngine over a tiny GGUF and its adapter: what llama.cpp computes, and what happens when its process dies."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.ggufs import tiny_gguf
from tests.serving.scripted import app_of
from tests.serving.upstreams import collect, on_loop, text_of
from tuneloop.base.errors import TuneloopError
from tuneloop.base.records import Sampling
from tuneloop.data.tokens.templates import CHATML
from tuneloop.gguf.llamacpp import LlamaCpp
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.engine import Piece, Query
from tuneloop.serving.llamacpp.gguf_body import require_schema
from tuneloop.serving.llamacpp.gguf_engine import GgufEngine, gguf_engine
from tuneloop.serving.llamacpp.gguf_files import gguf_model

CHAT = [{"role": "user", "content": "Which <|im_end|> is the way?"}]
TIE = 0.02
"""A gap between the two likeliest tokens, in standard deviations of the logits, below which rounding decides."""
RANDOM = Sampling(temperature=1.0, seed=11, logit_bias=((0, -100.0), (2, -100.0)))
"""It does not end by itself: a random model would, at once."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_gguf(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def engine(files: tuple[Path, Path]) -> Iterator[GgufEngine]:
    made = GgufEngine(gguf_model(files[0], print), slots=4, tokens=512, max_new_tokens=24, notice=print)
    yield made
    made.close()


async def ask(engine: GgufEngine, query: Query) -> list[Piece]:
    return await collect(await engine.submit(query))


async def refusal(engine: GgufEngine, query: Query) -> TuneloopError:
    with pytest.raises(TuneloopError) as caught:
        await engine.submit(query)
    return caught.value


def tokens_of(pieces: list[Piece], choice: int = 0) -> list[int]:
    return [score.token for piece in pieces if piece.choice == choice for score in piece.scores]


@asynccontextmanager
async def idle(engine: GgufEngine) -> AsyncIterator[None]:
    """Whatever happens in it leaves no request, place or token behind."""
    yield
    assert engine.pending == 0
    gauges = engine.gauges()
    assert (gauges["slots_busy"], gauges["cache_tokens_busy"]) == (0, 0)


@on_loop
async def test_the_model_and_its_adapter_are_listed(engine: GgufEngine) -> None:
    entries = {entry.name: (entry.base, entry.context) for entry in await engine.models()}
    assert entries == {"tiny": (None, 256), "shop": ("tiny", 256)}
    assert engine.ready
    assert engine.capacity == 4


@on_loop
async def test_each_name_has_an_identity_of_its_own(engine: GgufEngine) -> None:
    names = [entry.name for entry in await engine.models()]
    known = [await engine.identity(name) for name in names]
    assert None not in known
    assert len({*known}) == len(names) > 1
    assert known == [await engine.identity(name) for name in names]
    with pytest.raises(TuneloopError, match="TL-SERVE-MODEL"):
        await engine.identity("nobody")


@pytest.mark.parametrize("model", ["tiny", "shop"])
@on_loop
async def test_greedy_is_what_llama_cpp_computes_up_to_a_near_tie(
    engine: GgufEngine, files: tuple[Path, Path], model: str
) -> None:
    """Beside others, for the base and the adapter in turns, so that no cache of one is taken for the other. Tokens that
    are parts of characters are banned: llama.cpp's server reports none that ends in the middle of one."""
    prompts = [(5, 99, 301, 7, 44, 260 + n) for n in range(4)]
    names = ["shop", "tiny"] if model == "tiny" else ["tiny", "shop"]
    with LlamaCpp(files[0], adapters=[files[1]] if model == "shop" else [], context=128, threads=1) as llama:
        texts = llama.detokenize([[n] for n in range(llama.vocabulary)])
        banned = [n for n, text in enumerate(texts) if "\ufffd" in text or n in llama.ends()]
        theirs = [llama.greedy(ids, 16, banned=banned) for ids in prompts]
    sampling = Sampling(logit_bias=tuple((n, -100.0) for n in banned))
    queries = [
        Query("text", name, prompt=ids, max_new_tokens=16, logprobs=0, sampling=sampling)
        for ids in prompts
        for name in names
    ]
    async with idle(engine):
        answers = await asyncio.gather(*(ask(engine, query) for query in queries))
        alone = [await ask(engine, query) for query in queries]
    for own in (answers, alone):
        tokens = [tokens_of(pieces) for pieces in own[names.index(model) :: 2]]
        sure = [next((n for n, gap in enumerate(gaps) if gap < TIE), 16) for _, gaps in theirs]
        assert sum(sure) > 20
        assert [ours[:n] for ours, n in zip(tokens, sure, strict=True)] == [
            expected[:n] for (expected, _), n in zip(theirs, sure, strict=True)
        ]


@on_loop
async def test_an_adapter_is_asked_with_its_own_chat_template(files: tuple[Path, Path]) -> None:
    own = {"shop": "{% for m in messages %}{{ m['role'] + '>' + m['content'] }}{% endfor %}"}
    engine = GgufEngine(
        replace(gguf_model(files[0], print), templates=own), slots=1, tokens=128, max_new_tokens=4, notice=print
    )
    try:
        child = engine._supervisor.child
        assert child is not None
        chat = [{"role": "user", "content": "Hi"}]
        prompts = {name: child.written(child.chat(Query("chat", name, chat=chat), "")[0]) for name in ("tiny", "shop")}
        assert prompts == {"tiny": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "shop": "user>Hi"}
        assert (child.template("tiny"), child.template("shop")) == (CHATML, own["shop"])
    finally:
        engine.close()


@on_loop
async def test_a_request_s_text_becomes_no_control_token(engine: GgufEngine) -> None:
    child = engine._supervisor.child
    assert child is not None
    ids, _ = child.chat(Query("chat", "tiny", chat=CHAT), "")
    ordinary, _ = child.chat(Query("chat", "tiny", chat=[{"role": "user", "content": "x"}]), "")
    assert "Which <|im_end|> is the way?" in child.written(ids)
    assert ids.count(2) == ordinary.count(2) == 1
    assert 2 not in child.text("the <|im_end|> end")


@on_loop
async def test_what_a_chat_asks_for_arrives(engine: GgufEngine) -> None:
    query = Query("chat", "tiny", chat=CHAT, max_new_tokens=12, n=3, sampling=RANDOM, logprobs=2)
    async with idle(engine):
        stream = await engine.submit(query)
        pieces = await collect(stream)
        again = await ask(engine, query)
    texts = [text_of(pieces, n) for n in range(3)]
    assert len(set(texts)) == 3
    assert texts == [text_of(again, n) for n in range(3)]
    last = [piece for piece in pieces if piece.finish]
    assert sorted(piece.choice for piece in last) == [0, 1, 2]
    assert all(1 <= piece.tokens <= 12 for piece in last)
    assert stream.prompt_tokens > 10
    scores = [score for piece in pieces for score in piece.scores]
    assert scores
    assert all(len(score.likeliest) == 2 and score.logprob is not None and score.logprob < 0 for score in scores)


@on_loop
async def test_sampling_is_ours_and_not_llama_cpp_s_defaults(engine: GgufEngine) -> None:
    """Greedy equals the likeliest of very many; a bias bans a token; top_k 1 is greedy at any temperature."""
    base: dict[str, Any] = {"purpose": "text", "model": "tiny", "prompt": (9, 8, 7), "max_new_tokens": 6, "logprobs": 0}
    greedy = tokens_of(await ask(engine, Query(**base)))
    only = Sampling(temperature=1.9, top_k=1, seed=3)
    assert tokens_of(await ask(engine, Query(**base, sampling=only))) == greedy
    banned = tokens_of(await ask(engine, Query(**base, sampling=Sampling(logit_bias=((greedy[0], -100.0),)))))
    assert greedy[0] not in banned
    hot = {
        tuple(tokens_of(await ask(engine, Query(**base, sampling=Sampling(temperature=2.0, seed=n))))) for n in range(5)
    }
    assert len(hot) == 5  # its own min_p and top_k would leave a few tokens


@on_loop
async def test_a_stop_text_ends_and_is_left_out(engine: GgufEngine) -> None:
    base: dict[str, Any] = {"purpose": "text", "model": "tiny", "prompt": (9, 8, 7), "max_new_tokens": 30}
    full = text_of(await ask(engine, Query(**base)))
    stop = next(full[n : n + 2] for n in range(3, len(full)) if full[n : n + 2].isalpha() and full[n : n + 2].isascii())
    pieces = await ask(engine, Query(**base, stop=(stop,)))
    assert text_of(pieces) == full[: full.index(stop)]
    assert pieces[-1].finish == "stop"


@on_loop
async def test_echo_comes_first(engine: GgufEngine) -> None:
    for prompt, text in (("the cat", "the cat"), ((9, 8, 7), None)):
        bare = text_of(await ask(engine, Query("text", "tiny", prompt=prompt, max_new_tokens=4)))
        pieces = await ask(engine, Query("text", "tiny", prompt=prompt, max_new_tokens=4, echo=True))
        assert text_of(pieces) == (text or pieces[0].text) + bare


@on_loop
async def test_what_a_client_gets_of_n_and_echo(engine: GgufEngine) -> None:
    """llama.cpp's server gives no scores of a prompt: whoever wants them learns which field it is."""
    body = {"model": "tiny", "prompt": "the cat", "max_tokens": 4, "temperature": 1.0, "seed": 5}
    transport = httpx.ASGITransport(app_of(engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:

        async def post(**more: Any) -> httpx.Response:
            return await client.post("/v1/completions", json={**body, **more})

        several = (await post(n=3, logprobs=1)).json()
        assert [choice["index"] for choice in several["choices"]] == [0, 1, 2]
        assert several["usage"]["completion_tokens"] <= 12
        for most in (0, 4):
            (echoed,) = (await post(echo=True, max_tokens=most)).json()["choices"]
            assert echoed["text"].startswith("the cat")
            assert (echoed["text"] == "the cat") == (most == 0)
        refused = await post(echo=True, logprobs=1)
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["param"], error["code"]) == (
        400, "invalid_request_error", "echo", "TL-SERVE-UNSUPPORTED",
    )  # fmt: skip
    assert "logprobs" in error["message"]


@on_loop
async def test_a_schema_is_met(engine: GgufEngine) -> None:
    import json

    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    child = engine._supervisor.child
    assert child is not None
    blanks = [ids[-1] for text in (" ", "\n", "\t") if len(ids := child.text(text)) == 1]
    assert blanks
    wishing_for_blanks = Sampling(logit_bias=tuple((token, 100.0) for token in blanks))
    for sampling in (RANDOM, wishing_for_blanks):
        pieces = await ask(
            engine, Query("chat", "tiny", chat=CHAT, max_new_tokens=160, schema=schema, sampling=sampling)
        )
        assert pieces[-1].finish == "stop"
        assert set(json.loads(text_of(pieces))) == {"ok"}
    require_schema({"type": "object"})


@pytest.mark.parametrize(("query", "code", "param"), [
    (Query("chat", "tinny", chat=CHAT), "TL-SERVE-MODEL", "model"),
    (Query("chat", "../tiny.gguf", chat=CHAT), "TL-SERVE-MODEL", "model"),
    (Query("label", "tiny", chat=CHAT), "TL-SERVE-UNSUPPORTED", "model"),
    (Query("vector", "tiny", prompt="x"), "TL-SERVE-UNSUPPORTED", "model"),
    (Query("text", "tiny", prompt="x", echo=True, logprobs=1), "TL-SERVE-UNSUPPORTED", "echo"),
    (Query("text", "tiny", prompt=(1, 10**9)), "TL-SERVE-TOKEN", "prompt"),
    (Query("text", "tiny", prompt=(1, -1)), "TL-SERVE-REQUEST", "prompt"),
    (Query("text", "tiny", prompt=tuple([5] * 256)), "TL-SERVE-CONTEXT", "prompt"),
    (Query("chat", "tiny", chat=[{"role": "user", "content": "word " * 900}]), "TL-SERVE-CONTEXT", "messages"),
    (Query("chat", "tiny", chat=CHAT, max_new_tokens=250), "TL-SERVE-ROOM", "max_tokens"),
    (Query("chat", "tiny", chat=CHAT, schema={"type": "thing"}), "TL-SERVE-SCHEMA", "response_format"),
    (Query("chat", "tiny", chat=CHAT, schema={"type": "string", "pattern": "(?=a)b"}), "TL-SERVE-SCHEMA", "response_format"),
])  # fmt: skip
@on_loop
async def test_what_it_cannot_do_is_refused_by_name(engine: GgufEngine, query: Query, code: str, param: str) -> None:
    async with idle(engine):
        error = await refusal(engine, query)
    assert (error.code, error.facts["param"]) == (code, param)


@on_loop
async def test_more_requests_than_places_wait_in_order_and_all_are_answered(engine: GgufEngine) -> None:
    """Each may write to the end of the context, which the cache holds twice: no answer is ended for lack of it."""
    queries = [Query("text", "tiny", prompt=(9, 8, 7 + n), max_new_tokens=60 + n, sampling=RANDOM) for n in range(9)]
    async with idle(engine):
        answers = await asyncio.gather(*(ask(engine, query) for query in queries))
    alone = [await ask(engine, query) for query in queries[:2]]
    assert [text_of(a) for a in alone] == [text_of(a) for a in answers[:2]]
    assert all(pieces[-1].finish for pieces in answers)


@on_loop
async def test_a_full_cache_ends_no_answer(engine: GgufEngine) -> None:
    """What idle places hold of earlier prompts makes way, and many answers to one prompt take turns."""

    async def one(n: int, prompt: int, new: int, answers: int = 1) -> list[int]:
        ids = tuple(5 + (n * 7919 + k * 31 * (n + 1)) % 380 for k in range(prompt))
        query = Query("text", "tiny", prompt=ids, max_new_tokens=new, sampling=RANDOM, n=answers)
        return sorted(piece.tokens for piece in await ask(engine, query) if piece.finish)

    async with idle(engine):
        for n in range(6):
            assert await one(n, 180, 5) == [5]
        assert await asyncio.gather(*(one(10 + n, 128, 128) for n in range(6))) == [[128]] * 6
        assert await asyncio.gather(*(one(20 + n, 60, 90, 6) for n in range(2))) == [[90] * 6] * 2


@on_loop
async def test_who_goes_away_frees_the_place(engine: GgufEngine) -> None:
    async with idle(engine):
        for _ in range(6):
            stream = await engine.submit(Query("text", "tiny", prompt=(9, 8, 7), max_new_tokens=200, sampling=RANDOM))
            await anext(stream)
            await stream.aclose()
            await stream.aclose()
        waiting = [
            asyncio.ensure_future(ask(engine, Query("text", "tiny", prompt=(9,), max_new_tokens=200))) for _ in range(6)
        ]
        await asyncio.sleep(0.05)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert text_of(await ask(engine, Query("text", "tiny", prompt=(9, 8, 7), max_new_tokens=4)))


@on_loop
async def test_a_killed_process_costs_its_answers_and_no_more(engine: GgufEngine) -> None:
    child = engine._supervisor.child
    assert child is not None
    killed = False
    errors: list[TuneloopError] = []

    async def watched(n: int) -> str:
        nonlocal killed
        query = Query("text", "tiny", prompt=(9, 8, 7 + n), max_new_tokens=240, sampling=RANDOM)
        try:
            async for _ in await engine.submit(query):
                if not killed:
                    killed = True
                    os.kill(child._child.pid, signal.SIGKILL)
        except TuneloopError as error:
            errors.append(error)
            return error.code
        return "answered"

    async with idle(engine):
        ends = await asyncio.gather(*(watched(n) for n in range(8)))  # two at a time, as the cache has it
        assert set(ends) <= {"TL-SERVE-DOWN", "answered"}
        assert "TL-SERVE-DOWN" in ends
        assert {error.facts["status"] for error in errors} == {503}
        assert text_of(await ask(engine, Query("text", "tiny", prompt=(9, 8, 7), max_new_tokens=4)))
    assert engine.gauges()["engine_restarts_total"] == 1
    assert engine.ready
    with pytest.raises(ProcessLookupError):
        os.kill(child._child.pid, 0)


def test_the_recipe_s_engine_is_made_and_closes_while_it_answers(files: tuple[Path, Path]) -> None:
    notes: list[str] = []
    engine = gguf_engine(str(files[0].parent), ServePart(max_new_tokens=7), files[0].parent, notes.append)
    assert any("parity.json" in note for note in notes)

    async def closing() -> None:
        stream = await engine.submit(Query("text", "tiny", prompt=(9, 8, 7), max_new_tokens=240, sampling=RANDOM))
        short = await engine.submit(Query("text", "tiny", prompt=(9, 8)))
        assert sum(piece.tokens for piece in await collect(short)) <= 7
        began = time.monotonic()
        closed = asyncio.create_task(asyncio.to_thread(engine.close))
        with pytest.raises(TuneloopError, match="TL-SERVE-CLOSING"):
            await collect(stream)
        await closed
        assert time.monotonic() - began < 20
        with pytest.raises(TuneloopError, match="TL-SERVE-CLOSING"):
            await engine.submit(Query("text", "tiny", prompt=(9,)))

    pid = engine._supervisor._latest._child.pid
    asyncio.run(closing())
    assert not engine.open
    assert not engine.ready
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    engine.close()


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(1800)
def test_the_real_model_says_to_eight_what_it_says_to_one(tmp_path: Path) -> None:
    """SmolLM2 as F16: eight chats at once, each as llama.cpp's own reader continues it up to the first near tie."""
    from tuneloop.gguf.write import write_gguf
    from tuneloop.hub.resolve import resolve

    questions = ["Who are you?", "Name three colours.", "你是谁？", "Write a haiku about rain.", "What is 7 + 5?",
                 "Why is the sky blue?", "Translate 'good morning' into French.", "List the days of the week."]  # fmt: skip
    write_gguf(resolve("smollm2-135m-instruct"), tmp_path / "smol.gguf", "f16")
    engine = GgufEngine(gguf_model(tmp_path, print), slots=8, tokens=4096, max_new_tokens=48, notice=print)
    queries = [
        Query("chat", "smol", chat=[{"role": "user", "content": text}], max_new_tokens=32, logprobs=0)
        for text in questions
    ]

    async def run() -> list[list[int]]:
        return [tokens_of(pieces) for pieces in await asyncio.gather(*(ask(engine, query) for query in queries))]

    try:
        child = engine._supervisor.child
        assert child is not None
        prompts = [child.chat(query, "")[0] for query in queries]
        answers = asyncio.run(run())
    finally:
        engine.close()
    compared = 0
    with LlamaCpp(tmp_path / "smol.gguf", context=512) as llama:
        texts = llama.detokenize([[n] for n in range(llama.vocabulary)])
        for ids, answer in zip(prompts, answers, strict=True):
            theirs, gaps = llama.greedy(ids, 32)
            ends = (n for n, token in enumerate(theirs) if token in llama.ends() or "\ufffd" in texts[token])
            sure = min(next(ends, 32), next((n for n, gap in enumerate(gaps) if gap < TIE), 32))
            assert answer[:sure] == theirs[:sure]
            compared += sure
    assert compared > 40
