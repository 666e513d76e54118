"""The official client, synchronous and not, with every parameter, streaming and not, against the real engine.

The model is tiny and has learned a few dialogues by heart. Each answer on the wire is held to /openapi.json.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from pydantic import BaseModel

from tests import encoders
from tests.serving.scripted import Served, serving
from tests.serving.taught import TOOL_ANSWER, TOOLS, taught_model, user
from tests.serving.wire_log import WireLog
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.worker.torch_engine import TorchEngine

HELLO = "Hi, I'm Pebble. 你好!"
MODES = [
    "sync",
    "async stream",
    pytest.param("async", marks=pytest.mark.slow),
    pytest.param("sync stream", marks=pytest.mark.slow),
]
"""The quick two have both clients and both ways; the slow two are the rest of the square."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = taught_model(tmp_path_factory.mktemp("taught") / "taught")
    with serving(TorchEngine(str(folder), ServePart())) as one:
        yield one


@dataclass
class Choice:
    """An answer, however it came."""

    text: str = ""
    thought: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    finish: str | None = None
    tokens: list[Any] = field(default_factory=list)
    logprobs: Any = None
    parts: int = 0


@dataclass
class Got:
    choices: list[Choice]
    usage: Any

    @property
    def one(self) -> Choice:
        assert len(self.choices) == 1
        return self.choices[0]


Ask = Callable[..., Got]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Asker:
    """Sends requests in one of the modes, and holds what came back to the description."""

    def __init__(self, served: Served, mode: str) -> None:
        self._url, self._mode, self.log = f"{served.url}/v1", mode, WireLog()

    def _send(self, path: str, options: dict[str, Any]) -> Any:
        if "stream" in self._mode:
            options = {**options, "stream": True, "stream_options": {"include_usage": True}}
        account = {"base_url": self._url, "api_key": "none", "max_retries": 0}
        if self._mode.startswith("async"):
            return asyncio.run(self._send_async(path, options, account))
        with openai.OpenAI(http_client=self.log.client(), **account) as client:  # type: ignore[arg-type]
            reply = (client.chat.completions if path == "chat" else client.completions).create(**options)
            return list(reply) if "stream" in options else reply

    async def _send_async(self, path: str, options: dict[str, Any], account: dict[str, Any]) -> Any:
        async with openai.AsyncOpenAI(http_client=self.log.async_client(), **account) as client:
            reply = await (client.chat.completions if path == "chat" else client.completions).create(**options)
            return [chunk async for chunk in reply] if "stream" in options else reply

    def chat(self, text: str | list[Any], **options: Any) -> Got:
        messages = user(text) if isinstance(text, str) else text
        reply = self._send("chat", {"model": "taught", "messages": messages, "max_tokens": 120, **options})
        if isinstance(reply, list):
            return _from_chat_chunks(reply)
        return Got([_from_message(one) for one in reply.choices], reply.usage)

    def text(self, prompt: Any, **options: Any) -> Got:
        reply = self._send("text", {"model": "taught", "prompt": prompt, **options})
        if isinstance(reply, list):
            return _from_text_chunks(reply)
        choices = sorted(reply.choices, key=lambda one: one.index)
        return Got([Choice(one.text, finish=one.finish_reason, logprobs=one.logprobs) for one in choices], reply.usage)


def _from_message(one: Any) -> Choice:
    calls = one.message.tool_calls or []
    return Choice(
        one.message.content or "", getattr(one.message, "reasoning_content", None) or "",
        [(c.function.name, c.function.arguments) for c in calls], [c.id for c in calls], one.finish_reason,
        one.logprobs.content if one.logprobs else [],
    )  # fmt: skip


def _from_chat_chunks(chunks: list[Any]) -> Got:
    choices: dict[int, Choice] = {}
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert len({c.id for c in chunks}) == 1
    for chunk in chunks[:-1]:
        (one,) = chunk.choices
        first = one.index not in choices
        choice = choices.setdefault(one.index, Choice())
        assert (one.delta.role == "assistant") == first
        assert choice.finish is None, "nothing comes after the end"
        choice.text += one.delta.content or ""
        choice.thought += getattr(one.delta, "reasoning_content", None) or ""
        choice.parts += bool(one.delta.content)
        choice.tokens += one.logprobs.content if one.logprobs else []
        for part in one.delta.tool_calls or []:
            if part.id:
                assert part.type == "function"
                choice.calls.append((part.function.name, ""))
                choice.ids.append(part.id)
            name, arguments = choice.calls[part.index]
            choice.calls[part.index] = (name, arguments + (part.function.arguments or ""))
        choice.finish = one.finish_reason
    return Got([choices[k] for k in sorted(choices)], chunks[-1].usage)


def _from_text_chunks(chunks: list[Any]) -> Got:
    choices: dict[int, Choice] = {}
    for chunk in chunks[:-1]:
        (one,) = chunk.choices
        choice = choices.setdefault(one.index, Choice())
        choice.text += one.text
        choice.finish = one.finish_reason or choice.finish
        if one.logprobs and choice.logprobs is None:
            choice.logprobs = one.logprobs
        elif one.logprobs:
            for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
                if getattr(one.logprobs, name) is not None:
                    getattr(choice.logprobs, name).extend(getattr(one.logprobs, name))
    return Got([choices[k] for k in sorted(choices)], chunks[-1].usage)


@pytest.fixture
def asker(served: Served, mode: str) -> Iterator[Asker]:
    asker = Asker(served, mode)
    yield asker
    assert asker.log.exchanges
    asker.log.check()


# Chat


def test_an_answer(asker: Asker) -> None:
    got = asker.chat("Hello")
    assert (got.one.text, got.one.finish, got.one.thought, got.one.calls) == (HELLO, "stop", "", [])
    assert got.usage.completion_tokens > 5
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert 0 <= got.usage.prompt_tokens_details.cached_tokens < got.usage.prompt_tokens
    assert asker.chat("Hello").usage.prompt_tokens == got.usage.prompt_tokens


def test_it_streams_as_it_is_written(served: Served) -> None:
    assert Asker(served, "sync stream").chat("Hello").one.parts > 3


def test_messages_in_parts_and_every_role(asker: Asker) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    assert asker.chat(parts).one.text == HELLO
    many: list[Any] = [{"role": "developer", "content": "Be brief."}, *user("Hello"), {"role": "assistant", "content": HELLO},
                       *user("Hello")]  # fmt: skip
    assert asker.chat(many, max_tokens=5).usage.completion_tokens <= 5


def test_thoughts(asker: Asker) -> None:
    got = asker.chat("Think").one
    assert (got.text, got.thought, got.finish) == ("It is 4.", "2 and 2", "stop")
    for switch in ({"reasoning_effort": "none"}, {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}):
        assert asker.chat("Think", **switch).one.text == "It is 4.", "this template has no such switch"
    again = [
        *user("Think"),
        {"role": "assistant", "content": "It is 4.", "reasoning_content": "2 and 2"},
        *user("Hello"),
    ]
    assert asker.chat(again, max_tokens=3).one.finish in ("length", "stop")


def test_lengths(asker: Asker) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        got = asker.chat("Hello", **{"max_tokens": None, name: 3})
        assert (got.usage.completion_tokens, got.one.finish) == (3, "length")
        assert HELLO.startswith(got.one.text.rstrip("\ufffd"))


def test_stop_texts(asker: Asker) -> None:
    for stop, text in ((" Peb", "Hi, I'm"), (["nothing", "bble."], "Hi, I'm Pe"), (["H"], ""), ([], HELLO)):
        got = asker.chat("Hello", stop=stop).one
        assert (got.text, got.finish) == (text, "stop")


def test_several_choices(asker: Asker) -> None:
    got = asker.chat("Hello", n=3)
    assert [(c.text, c.finish) for c in got.choices] == [(HELLO, "stop")] * 3
    got = asker.chat("Hello", n=3, temperature=2, seed=1, max_tokens=12)
    assert len({c.text for c in got.choices}) == 3
    assert got.usage.completion_tokens <= 36


def test_seeds(asker: Asker) -> None:
    texts = [asker.chat("Hello", temperature=2, seed=seed, max_tokens=12).one.text for seed in (1, 2, 1, -5)]
    assert texts[0] == texts[2]
    assert len(set(texts)) == 3


def test_limits_of_sampling(asker: Asker) -> None:
    for limit in ({"top_p": 1e-6}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}):
        assert asker.chat("Hello", temperature=2, seed=3, **limit).one.text == HELLO, limit
    assert asker.chat("Hello", temperature=0, top_p=0.5).one.text == HELLO


def test_penalties_and_biases(asker: Asker) -> None:
    token = "!"
    scored = asker.text("!", echo=True, max_tokens=0, logprobs=0).one.logprobs
    assert scored.tokens == [token]
    number = next(k for k in range(3, 12) if _is_token(asker, k, token))
    often = asker.chat("Hello", logit_bias={str(number): 60}, max_tokens=40)
    assert often.one.text == "!" * 40
    mixed = asker.chat("Hello", logit_bias={str(number): 60}, max_tokens=40, frequency_penalty=2)
    assert mixed.one.text.startswith("!!!")
    assert mixed.one.text != often.one.text
    never = asker.chat("Hello", logit_bias={str(number): -100})
    assert "!" not in never.one.text.removesuffix("!")
    for penalty in ({"presence_penalty": 0.1}, {"extra_body": {"repetition_penalty": 1.0}}):
        assert asker.chat("Hello", **penalty).one.text == HELLO
    assert asker.chat("Hello", extra_body={"repetition_penalty": 5.0}).one.text != HELLO


NUMBERS: dict[str, int] = {}


def _is_token(asker: Asker, number: int, token: str) -> bool:
    if token not in NUMBERS:
        echoed = asker.text([[k] for k in range(3, 12)], echo=True, max_tokens=0, logprobs=0)
        NUMBERS[token] = 3 + [c.logprobs.tokens for c in echoed.choices].index([token])
    return NUMBERS[token] == number


def test_log_probabilities(asker: Asker) -> None:
    got = asker.chat("Hello", logprobs=True, top_logprobs=3)
    tokens = got.one.tokens
    assert b"".join(bytes(t.bytes) for t in tokens).decode() == HELLO
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert [one.logprob for one in token.top_logprobs] == sorted(
            (one.logprob for one in token.top_logprobs), reverse=True
        )
        assert token.logprob == token.top_logprobs[0].logprob <= 0, "a greedy answer takes the likeliest"
        assert token.token == token.top_logprobs[0].token
    assert all(t.top_logprobs == [] for t in asker.chat("Hello", logprobs=True, max_tokens=3).one.tokens)
    assert asker.chat("Hello", logprobs=False, max_tokens=3).one.tokens == []
    hot = asker.chat("Hello", logprobs=True, temperature=2, seed=1, n=2, max_tokens=5)
    assert all(c.tokens for c in hot.choices)


# Tools


def test_a_call(asker: Asker) -> None:
    got = asker.chat("Rome?", tools=TOOLS).one
    assert (got.text, got.calls, got.finish) == ("", [("weather", '{"city": "Rome"}')], "tool_calls")
    assert got.ids[0].startswith("call_")


def test_two_calls_and_text(asker: Asker) -> None:
    got = asker.chat("Both?", tools=TOOLS).one
    assert got.text == "Sure."
    assert got.calls == [("weather", '{"city": "Rome"}'), ("time", '{"city": "Paris"}')]
    assert len(set(got.ids)) == 2
    got = asker.chat("Both?", tools=TOOLS, parallel_tool_calls=False).one
    assert (got.calls, got.finish) == ([("weather", '{"city": "Rome"}')], "tool_calls")


def test_no_call(asker: Asker) -> None:
    got = asker.chat("Words?", tools=TOOLS, tool_choice="auto").one
    assert (got.text, got.calls, got.finish) == ("No tool.", [], "stop")
    got = asker.chat("Rome?", tools=TOOLS, tool_choice="none", max_tokens=20).one
    assert got.calls == []


def test_a_forced_call(asker: Asker) -> None:
    got = asker.chat("Words?", tools=TOOLS, tool_choice="required").one
    assert (len(got.calls), got.finish) == (1, "tool_calls")
    assert json.loads(got.calls[0][1])["city"] in ("Rome", "Paris")
    named: Any = {"type": "function", "function": {"name": "time"}}
    got = asker.chat("Rome?", tools=TOOLS, tool_choice=named).one
    assert [name for name, _ in got.calls] == ["time"]
    assert json.loads(got.calls[0][1])["city"] in ("Rome", "Paris")


def test_the_way_of_a_tools_result(asker: Asker) -> None:
    first = asker.chat("Rome?", tools=TOOLS).one
    call = {
        "id": first.ids[0],
        "type": "function",
        "function": {"name": first.calls[0][0], "arguments": first.calls[0][1]},
    }
    messages = [*user("Rome?"), {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": first.ids[0], "content": "rain"}]  # fmt: skip
    assert asker.chat(messages, tools=TOOLS).one.text == "Take an umbrella."
    assert asker.chat(TOOL_ANSWER, tools=TOOLS).one.text == "Take an umbrella."


# JSON


def test_json(asker: Asker) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}}, "required": ["a", "b"],
              "additionalProperties": False}  # fmt: skip
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    for how in ({}, {"n": 2, "temperature": 2, "seed": 5}):
        for choice in asker.chat("Hello", response_format=form, max_tokens=80, **how).choices:
            jsonschema.validate(json.loads(choice.text), schema)
            assert choice.finish == "stop"
    got = asker.chat("Hello", response_format={"type": "json_object"}, max_tokens=200).one
    assert got.text.startswith("{")
    assert got.finish == "length" or isinstance(json.loads(got.text), dict)
    assert asker.chat("Hello", response_format={"type": "text"}).one.text == HELLO


class Pick(BaseModel):
    city: bool


def test_the_clients_own_helpers(served: Served) -> None:
    with served.client() as client:
        parsed = client.chat.completions.parse(
            model="taught", messages=user("Hello"), response_format=Pick, max_tokens=40
        )
        assert isinstance(parsed.choices[0].message.parsed, Pick)
        tool = openai.pydantic_function_tool(Pick, name="pick")
        called = client.chat.completions.parse(
            model="taught", messages=user("Hello"), tools=[tool], tool_choice="required", max_tokens=60
        )
        assert isinstance((called.choices[0].message.tool_calls or [])[0].function.parsed_arguments, Pick)
        with client.chat.completions.stream(
            model="taught", messages=user("Both?"), tools=TOOLS, max_tokens=120
        ) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        assert "tool_calls.function.arguments.done" in kinds
        assert [c.function.name for c in final.choices[0].message.tool_calls or []] == ["weather", "time"]


def test_what_hosted_services_have_is_let_through(asker: Asker) -> None:
    got = asker.chat(
        "Hello", user="u", safety_identifier="s", metadata={"a": "b"}, store=True, service_tier="auto",
        prompt_cache_key="k", prompt_cache_retention="24h", modalities=["text"], functions=[], function_call="auto",
    )  # fmt: skip
    assert got.one.text == HELLO


# Texts


def test_continuations(asker: Asker) -> None:
    prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    got = asker.text(prompt, max_tokens=60)
    assert got.one.finish in ("stop", "length")
    assert got.usage.prompt_tokens > 5
    assert asker.text(prompt).usage.completion_tokens <= 16, "as the API has it, where no length is named"
    several = asker.text([prompt, "a"], n=2, max_tokens=4, best_of=1, suffix="")
    assert len(several.choices) == 4
    assert several.choices[0].text == several.choices[1].text == asker.text(prompt, max_tokens=4).one.text
    assert several.choices[2].text == several.choices[3].text == asker.text("a", max_tokens=4).one.text


def test_echo_and_log_probabilities(asker: Asker) -> None:
    text = "Hi, 你好! Take an umbrella."
    got = asker.text(text, echo=True, logprobs=2, max_tokens=3).one
    assert got.text.startswith(text)
    scores = got.logprobs
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.top_logprobs) == len(scores.text_offset)
    assert scores.token_logprobs[0] is None
    assert scores.top_logprobs[0] is None
    assert all(one <= 0 for one in scores.token_logprobs[1:])
    assert all(2 <= len(one) <= 3 for one in scores.top_logprobs[1:])
    for token, at in zip(scores.tokens, scores.text_offset, strict=True):
        if not token.startswith(("bytes:", "<|")):  # the end token is no text
            assert got.text[at:].startswith(token)
    none = asker.text(text, echo=True, logprobs=0, max_tokens=0)
    assert none.one.text == text
    assert none.one.logprobs.token_logprobs == pytest.approx(
        scores.token_logprobs[: len(none.one.logprobs.tokens)], abs=1e-4
    )
    assert none.one.logprobs.top_logprobs is None
    assert none.usage.completion_tokens == 0
    plain = asker.text(text, max_tokens=3).one
    assert (plain.text, plain.logprobs) == (got.text.removeprefix(text), None)


def test_token_ids_are_what_the_text_would_be(asker: Asker) -> None:
    one, two = (asker.text([k, k + 1], echo=True, logprobs=1, max_tokens=2) for k in (30, 40))
    both = asker.text([[30, 31], [40, 41]], echo=True, logprobs=1, max_tokens=2)
    assert [c.text for c in both.choices] == [one.one.text, two.one.text]
    assert len(both.choices[0].logprobs.tokens) == 4


def test_stop_texts_of_continuations(asker: Asker) -> None:
    free = asker.text("Take", max_tokens=8).one.text
    assert len(free) > 3
    stop = free[2]
    assert asker.text("Take", max_tokens=8, stop=stop).one.text == free[: free.index(stop)]


# Models and errors


def test_models(served: Served) -> None:
    log = WireLog()
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", http_client=log.client(), max_retries=0)
    assert "taught" in [m.id for m in client.models.list()]
    assert client.models.retrieve("taught").model_dump()["max_model_len"] == 1024
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("tought")
    assert "taught" in str(missing.value)
    log.check()


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        ({"max_tokens": 5000}, "TL-SERVE-ROOM", "max_tokens"),
        ({"max_tokens": None, "max_completion_tokens": 5000}, "TL-SERVE-ROOM", "max_completion_tokens"),
        ({"messages": user("word " * 2000)}, "TL-SERVE-CONTEXT", "messages"),
        ({"logit_bias": {"100000": 1}}, "TL-SERVE-TOKEN", "logit_bias"),
        ({"n": 1000}, "TL-SERVE-REQUEST", "n"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://localhost/x"}}}},
         "TL-SERVE-SCHEMA", "response_format"),
        ({"model": "tought"}, "TL-SERVE-MODEL", "model"),
    ],
)  # fmt: skip
def test_errors_of_a_chat(asker: Asker, options: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        asker.chat(options.get("messages", "Hello"), **{k: v for k, v in options.items() if k != "messages"})
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ([100_000], "TL-SERVE-TOKEN"),
        (["a", ""], "TL-SERVE-REQUEST"),
        ("word " * 2000, "TL-SERVE-CONTEXT"),
        ([7] * 1025, "TL-SERVE-CONTEXT"),
    ],
)
def test_errors_of_a_text(asker: Asker, prompt: Any, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        asker.text(prompt)
    assert (caught.value.code, caught.value.param) == (code, "prompt")


def test_no_neighbour_is_harmed(served: Served) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            good = [
                client.chat.completions.create(model="taught", messages=user("Hello"), max_tokens=60) for _ in range(6)
            ]
            bad = [client.completions.create(model="taught", prompt=[100_000]) for _ in range(6)]
            replies = await asyncio.gather(
                *(one for pair in zip(good, bad, strict=True) for one in pair), return_exceptions=True
            )
        assert [getattr(r, "choices", [None])[0].message.content for r in replies[::2]] == [HELLO] * 6
        assert all(isinstance(r, openai.BadRequestError) for r in replies[1::2])

    asyncio.run(main())


# Vectors


def test_vectors_in_every_form(tmp_path: Path) -> None:
    """By the client's own way (base64) and as numbers, of texts and token ids, as the model gives them in process."""
    from tuneloop.inference.embedder import load_embedder

    folder = encoders.folder(tmp_path, "bert")
    texts = ["a great film", "the plot was dull ."]
    expected = load_embedder(folder).embed(texts)
    tokenizer = encoders.tokenizer()
    ids = [tokenizer(text)["input_ids"] for text in texts]
    log = WireLog()

    async def ask(url: str, **options: Any) -> Any:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", http_client=log.async_client()) as client:
            return await client.embeddings.create(model=folder.name, **options)

    with serving(TorchEngine(str(folder), ServePart())) as one:
        client = openai.OpenAI(base_url=f"{one.url}/v1", api_key="none", http_client=log.client(), max_retries=0)
        for options in (
            {"input": texts},
            {"input": texts, "encoding_format": "float"},
            {"input": ids},
            {"input": texts, "user": "u"},
        ):
            for reply in (client.embeddings.create(model=folder.name, **options), asyncio.run(ask(one.url, **options))):
                assert [e.index for e in reply.data] == [0, 1]
                for entry, vector in zip(reply.data, expected, strict=True):
                    assert entry.embedding == pytest.approx(vector.tolist(), abs=1e-5)
                assert reply.usage.prompt_tokens == reply.usage.total_tokens == sum(map(len, ids))
        assert client.embeddings.create(model=folder.name, input=texts[0]).data[0].embedding == pytest.approx(
            expected[0].tolist(), abs=1e-5
        )
        for wrong, code, param in (
            ({"input": "film " * 200}, "TL-SERVE-CONTEXT", "input"),
            ({"input": [10**6]}, "TL-SERVE-TOKEN", "input"),
            ({"input": texts, "dimensions": 4}, "TL-SERVE-UNSUPPORTED", "dimensions"),
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                client.embeddings.create(model=folder.name, **wrong)  # type: ignore[arg-type]
            assert (caught.value.code, caught.value.param) == (code, param)
        with pytest.raises(openai.BadRequestError) as chat:
            client.chat.completions.create(model=folder.name, messages=user("x"))
        with pytest.raises(openai.BadRequestError) as text:
            client.completions.create(model=folder.name, prompt="x")
        assert (chat.value.param, text.value.param) == ("model", "model")
    log.check()
