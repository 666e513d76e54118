"""/openapi.json: every route, each body as it is validated, and all that the official client can send."""

from __future__ import annotations

import json
import typing
from typing import Any

import jsonschema
import pytest
from fastapi.routing import APIRoute
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params

from tests.serving.http.test_chat_request import TOOL, USER
from tests.serving.scripted import ScriptedEngine, app_of
from tuneloop.base.errors import ServeError
from tuneloop.serving.http.body import parse
from tuneloop.serving.http.openapi import OPERATIONS, document

DOCUMENT = document()
TYPES: dict[str, list[Any]] = {
    "/v1/chat/completions": [chat_create_params.CompletionCreateParamsNonStreaming, chat_create_params.CompletionCreateParamsStreaming],
    "/v1/completions": [completion_create_params.CompletionCreateParamsNonStreaming, completion_create_params.CompletionCreateParamsStreaming],
    "/v1/embeddings": [embedding_create_params.EmbeddingCreateParams],
}  # fmt: skip


def schema_of(
    path: str, method: str = "post", status: str | None = None, kind: str = "application/json"
) -> dict[str, Any]:
    """A schema of the document, which its own definitions make whole."""
    operation = DOCUMENT["paths"][path][method]
    holder = operation["requestBody"] if status is None else operation["responses"][status]
    return {**holder["content"][kind]["schema"], "components": DOCUMENT["components"]}


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return out


def test_the_document_is_openapi() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    for name, schema in DOCUMENT["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema), name
    text = json.dumps(DOCUMENT)
    references = {part.split('"')[0] for part in text.split('"$ref": "')[1:]}
    assert references == {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]} & references
    ids = [op["operationId"] for path in DOCUMENT["paths"].values() for op in path.values()]
    assert len(set(ids)) == len(ids)


def test_every_route_is_described_and_no_other() -> None:
    routes = set()
    for route in app_of(ScriptedEngine()).routes:
        assert isinstance(route, APIRoute)
        routes |= {(method.lower(), route.path.replace(":path", "")) for method in route.methods}
    assert routes == set(OPERATIONS)


@pytest.mark.parametrize("path", TYPES)
def test_the_clients_request_types_are_a_subset(path: str) -> None:
    """Each field that the official client can send is in the description; those that are refused say so there."""
    properties = resolved(schema_of(path))["properties"]
    for kind in TYPES[path]:
        sent = set(typing.get_type_hints(kind))
        assert sent <= set(properties), sent - set(properties)
    refused = {name for name, one in properties.items() if "TL-SERVE-UNSUPPORTED" in str(one.get("description"))}
    expected = {
        "/v1/chat/completions": {"functions", "function_call", "modalities", "audio", "prediction", "web_search_options",
                                 "moderation", "verbosity", "reasoning_effort"},
        "/v1/completions": {"best_of", "suffix"},
        "/v1/embeddings": {"dimensions"},
    }  # fmt: skip
    assert refused == expected[path]


SCORES = {"logprobs": True, "top_logprobs": 2}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
BODIES: list[tuple[str, dict[str, Any], bool]] = [
    ("/v1/chat/completions", {"messages": [USER]}, True),
    ("/v1/chat/completions", {"messages": [USER], "tools": [TOOL], "tool_choice": "required", **SCORES}, True),
    (
        "/v1/chat/completions",
        {"messages": [USER], "response_format": FORM, "stop": ["a"], "logit_bias": {"1": 2}},
        True,
    ),
    ("/v1/chat/completions", {"messages": [USER], "reasoning_effort": "none", "functions": []}, True),
    ("/v1/chat/completions", {"messages": []}, False),
    ("/v1/chat/completions", {"messages": [{"role": "robot", "content": ""}]}, False),
    ("/v1/chat/completions", {"messages": [USER], "functions": [1]}, False),
    ("/v1/chat/completions", {"messages": [USER], "reasoning_effort": "high"}, False),
    ("/v1/chat/completions", {"messages": [USER], "temperature": 3}, False),
    ("/v1/chat/completions", {"messages": [USER], "stop": ""}, False),
    ("/v1/chat/completions", {"messages": [USER], "logit_bias": {"1": 200}}, False),
    ("/v1/chat/completions", {"messages": [USER], "logit_bias": {"x": 1}}, False),
    ("/v1/chat/completions", {"messages": [USER], "unknown": 1}, False),
    ("/v1/chat/completions", {"messages": [USER], "response_format": {"type": "xml"}}, False),
    ("/v1/completions", {"prompt": "x", "echo": True, "logprobs": 1, "max_tokens": 0, "best_of": 1}, True),
    ("/v1/completions", {"prompt": ["a", "b"]}, True),
    ("/v1/completions", {"prompt": [1, 2]}, True),
    ("/v1/completions", {"prompt": [[1], [2]]}, True),
    ("/v1/completions", {"prompt": []}, False),
    ("/v1/completions", {"prompt": [-1]}, False),
    ("/v1/completions", {"prompt": "x", "best_of": 2}, False),
    ("/v1/completions", {"prompt": "x", "suffix": "y"}, False),
    ("/v1/embeddings", {"input": "x", "encoding_format": "base64"}, True),
    ("/v1/embeddings", {"input": [[1, 2], [3]]}, True),
    ("/v1/embeddings", {"input": "x", "encoding_format": "hex"}, False),
    ("/v1/embeddings", {"input": "x", "dimensions": 5}, False),
    ("/v1/classify", {"input": "x"}, True),
    ("/v1/classify", {"input": ""}, False),
]


@pytest.mark.parametrize(("path", "body", "good"), BODIES)
def test_a_body_is_valid_where_the_description_says_so(path: str, body: dict[str, Any], good: bool) -> None:
    body = {"model": "m", **body}
    kind = OPERATIONS["post", path].body
    assert kind is not None
    assert jsonschema.Draft202012Validator(schema_of(path)).is_valid(body) == good
    try:
        parse(json.dumps(body).encode(), kind)
    except ServeError:
        assert not good
    else:
        assert good
