"""The key of an answer: whatever changes the answer changes it, and nothing else."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from tuneloop.base.records import Sampling
from tuneloop.serving.cache.key import answer_key, is_deterministic, person_digest
from tuneloop.serving.engine import Query

QUERY = Query("chat", "m", chat=[{"role": "user", "content": "a"}])
OTHERS: dict[str, Any] = {
    "purpose": "text", "model": "n", "chat": [{"role": "user", "content": "a "}], "tools": ({"type": "function"},),
    "tool_choice": "none", "parallel_tool_calls": False, "thinking": True, "prompt": "a", "max_new_tokens": 1, "n": 2,
    "sampling": Sampling(seed=1), "stop": ("a",), "logprobs": 0, "echo": True, "schema": {},
}  # fmt: skip
"""Of each field of a query another one."""
SAMPLINGS: dict[str, Any] = {
    "temperature": 0.5, "top_p": 0.9, "seed": 1, "top_k": 3, "min_p": 0.1, "frequency_penalty": 1.0,
    "presence_penalty": 1.0, "repetition_penalty": 1.0, "logit_bias": ((1, 1.0),),
}  # fmt: skip


def key(query: Query, **more: str) -> str:
    return answer_key(query, **{"tenant": "shop", "identity": "1", **more})


def test_every_field_of_a_query_counts_but_who_asks() -> None:
    assert {field.name for field in fields(Query)} == {*OTHERS, "user"}, "a new field is to be thought of here"
    assert {field.name for field in fields(Sampling)} == {*SAMPLINGS}
    queries = [replace(QUERY, **{name: other}) for name, other in OTHERS.items()]
    queries += [
        replace(QUERY, sampling=Sampling(**{name: other})) for name, other in SAMPLINGS.items() if name != "seed"
    ]
    keys = [key(QUERY), *map(key, queries)]
    keys += [key(QUERY, **{name: "2"}) for name in ("tenant", "identity", "policy", "namespace")]
    assert len({*keys}) == len(keys)
    assert key(replace(QUERY, user="ann")) == key(QUERY)


def test_what_is_joined_of_halves_is_another_text_than_the_character() -> None:
    whole, halves = "\N{ROCK}", "\ud83e\udea8"
    texts = [replace(QUERY, chat=[{"role": "user", "content": text}]) for text in (whole, halves)]
    assert key(texts[0]) != key(texts[1])


@pytest.mark.parametrize("purpose", ["label", "vector"])
def test_what_draws_nothing_is_deterministic(purpose: Any) -> None:
    assert is_deterministic(Query(purpose, "m", sampling=Sampling(1.0)))


def test_no_name_of_a_person_or_tenant_stands_in_a_key() -> None:
    assert "shop" not in key(QUERY)
    assert "ann" not in person_digest("ann")
    assert set(key(QUERY)) <= set("0123456789abcdef:")
