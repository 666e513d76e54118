"""Answers under a schema meet it, beside answers that have none; what cannot be followed is refused by its field."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.inference.test_scheduler import run, scheduler_of
from tuneloop.base.errors import ServeError
from tuneloop.base.records import Sampling
from tuneloop.inference import grammar
from tuneloop.inference.batch import Generation
from tuneloop.inference.generate import Answerer
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.load import load_model

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FLAVOUR = {"enum": ["sweet", "sour", 3]}
LIST = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}


@pytest.fixture(scope="module")
def answerer(tiny_model: Path) -> Answerer:
    return Answerer(load_model(tiny_model, "float32"), load_tokenizer(tiny_model))


@pytest.mark.parametrize("how", [Sampling(), Sampling(1.0, seed=3)], ids=["greedy", "sampled"])
def test_answers_meet_their_schemas_and_neighbours_notice_nothing(answerer: Answerer, how: Sampling) -> None:
    """A tiny model that knows no JSON writes JSON; the answer ends where nothing can follow."""
    prompt = answerer.prompt([{"role": "user", "content": "Who?"}])
    schemas: list[dict[str, Any]] = [PERSON, FLAVOUR, LIST]
    free = [Generation(prompt, 12, how) for _ in range(2)]
    bound = [Generation(prompt, 150, how, grammar=grammar.compile(s, answerer.tokenizer)) for s in schemas]
    run(scheduler_of(answerer.model, answerer.stops, slots=5), [free[0], *bound])
    for one, schema in zip(bound, schemas, strict=True):
        assert one.error is None
        assert one.ended == "stop"
        jsonschema.validate(json.loads(answerer._text(one.tokens)), schema)
    run(scheduler_of(answerer.model, answerer.stops), [free[1]])
    assert free[0].tokens == free[1].tokens


def test_no_schema_is_any_object(answerer: Answerer) -> None:
    prompt = answerer.prompt([{"role": "user", "content": "Who?"}])
    any_object = grammar.compile({}, answerer.tokenizer)
    generations = [Generation(prompt, 40, Sampling(1.0, seed=n), grammar=any_object) for n in range(8)]
    run(scheduler_of(answerer.model, answerer.stops, slots=8), generations)
    for one in generations:
        text = answerer._text(one.tokens)
        assert text.startswith("{")
        if one.ended == "stop":
            assert isinstance(json.loads(text), dict)


def test_what_a_schema_cannot_be_is_refused_by_its_field(answerer: Answerer) -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(5000):
        deep = {"type": "array", "items": deep}
    bad = [
        {"type": "nonsense"},
        {"type": "string", "pattern": "(?=x)a"},
        {"$ref": "http://127.0.0.1:9/nowhere.json"},
        {"not": {"type": "string"}},
        {"type": "array", "items": {}, "uniqueItems": True},
        {"type": "object", "properties": []},
        deep,
    ]
    for schema in bad:
        with pytest.raises(ServeError) as caught:
            grammar.compile(schema, answerer.tokenizer)
        assert caught.value.code == "TL-SERVE-SCHEMA"
        assert caught.value.facts["param"] == "response_format"


def test_a_missing_extra_is_said(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ServeError) as caught:
        grammar.compile({}, answerer.tokenizer)
    assert caught.value.code == "TL-SERVE-SCHEMA-EXTRA"
    assert "schema" in str(caught.value)
    assert caught.value.facts["param"] == "response_format"
