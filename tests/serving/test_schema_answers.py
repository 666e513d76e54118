"""An answer under a JSON schema comes to an end and is JSON, from the real SmolLM2, by both engines that compute here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tuneloop.base.records import Sampling
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.engine import Engine, Query

MODEL = "smollm2-135m-instruct"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"enum": ["Rome", "Paris", "Beijing"]},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
CHATS = ("Describe Anna, who is 31 and lives in Rome, as JSON.", "Give me a person.", "Who are you?", "写一首诗。")


@contextmanager
def torch_engine(folder: Path, place: Path) -> Iterator[tuple[Engine, str]]:
    from tuneloop.serving.worker.torch_engine import TorchEngine

    engine = TorchEngine(str(folder), ServePart(), place)
    try:
        yield engine, folder.name
    finally:
        engine.close()


@contextmanager
def gguf_engine(folder: Path, place: Path) -> Iterator[tuple[Engine, str]]:
    from tuneloop.gguf.write import write_gguf
    from tuneloop.serving.llamacpp.gguf_engine import gguf_engine

    write_gguf(folder, place / "smol.gguf", "f16")
    engine = gguf_engine(place, ServePart(cache_tokens=4096), place, print)
    try:
        yield engine, engine.name
    finally:
        engine.close()


async def answer(engine: Engine, query: Query) -> tuple[str, str | None, int]:
    """Text, finish, tokens."""
    pieces = [piece async for piece in await engine.submit(query)]
    return "".join(piece.text for piece in pieces), pieces[-1].finish, sum(piece.tokens for piece in pieces)


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("make", [torch_engine, gguf_engine])
def test_an_object_of_three_fields_ends_and_parses(make: Callable[..., Any], tmp_path: Path) -> None:
    """Greedy, sampled, and from a model that would rather write blanks than anything else."""
    from tuneloop.hub.resolve import resolve

    folder = resolve(MODEL)
    blanks = load_tokenizer(folder).convert_tokens_to_ids(["Ġ", "Ċ", "ĉ"])
    wishing_for_blanks = Sampling(logit_bias=tuple((token, 100.0) for token in blanks))
    ways = (Sampling(), Sampling(1.0, seed=1), Sampling(1.5, seed=2), wishing_for_blanks)

    async def work() -> None:
        for number, text in enumerate(CHATS):
            for way in ways if number == 0 else ways[:3]:
                chat = [{"role": "user", "content": text}]
                written, finish, tokens = await answer(
                    engine, Query("chat", name, chat=chat, max_new_tokens=320, schema=PERSON, sampling=way)
                )
                print(f"{make.__name__}: {tokens} tokens, {finish}: {written!r}")
                assert finish == "stop"
                jsonschema.validate(json.loads(written), PERSON)

    with make(folder, tmp_path) as (engine, name):
        asyncio.run(work())
