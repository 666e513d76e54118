"""Bodies: what is read strictly, what is too much, and where the fault is."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.scripted import ScriptedEngine, serving
from tuneloop.base.errors import ServeError
from tuneloop.serving.http import body as body_module
from tuneloop.serving.http.body import MOST_DEPTH, check_headers, parse, parse_json
from tuneloop.serving.http.chat_request import ChatRequest
from tuneloop.serving.http.errors import error_body
from tuneloop.serving.http.text_requests import ClassifyRequest, CompletionRequest, EmbeddingRequest


def refused(body: bytes) -> str | None:
    with pytest.raises(ServeError) as caught:
        parse_json(body)
    error = error_body(caught.value)["error"]
    assert error["code"] == "TL-SERVE-REQUEST"
    json.dumps(error, ensure_ascii=False).encode("utf-8")
    param: str | None = error["param"]
    return param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"\xff\xfe{\x00}\x00", None),
        (b'{"a": "\xed\xa0\xbd"}', None),  # a surrogate in UTF-8
        (b"[" * 100_000, None),
        (b'{"a":' * 1_000_000, None),
        (b"9" * 5000, None),
        (b"nan", None),
        (b'{"temperature": NaN}', "temperature"),
        (b'{"messages": [{"x": [1, -Infinity]}]}', "messages.0.x.1"),
        (b'{"seed": 1e999}', "seed"),
        (b'{"model": "a", "stream": true, "model": "b"}', "model"),
        (b'{"a": {"b": 1, "b": 1}}', "b"),
        (b'{"messages": [{"content": "\\ud83d"}]}', "messages.0.content"),
        (b'{"messages": [{"\\ud83d": 1}]}', "messages.0.\\ud83d"),
        (b'{"\\ud83d": 1, "\\ud83d": 2}', "\\ud83d"),
        (b'{"tools": ' + b"[" * MOST_DEPTH + b"1" + b"]" * MOST_DEPTH + b"}", "tools"),
    ],
    ids=lambda body: str(body)[:30],
)
def test_json_that_readers_would_read_in_different_ways(body: bytes, param: str | None) -> None:
    assert refused(body) == param


def test_json_that_is_taken() -> None:
    for tree in ({"a": ["🪨\u0000\u2028", 1.5, -(10**30), None, True]}, [], 0, "x"):
        assert parse_json(json.dumps(tree).encode()) == tree
        assert parse_json(json.dumps(tree, ensure_ascii=False).encode()) == tree
    assert parse_json(b"[" * (MOST_DEPTH - 1) + b"]" * (MOST_DEPTH - 1))


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/merge+json", None]
)
def test_content_types_that_are_json(kind: str | None) -> None:
    check_headers(kind, None)
    check_headers(kind, "identity")


@pytest.mark.parametrize(
    ("kind", "encoding"),
    [("text/plain", None), ("application/x-www-form-urlencoded", None), ("multipart/form-data; boundary=x", None),
     ("application/json; charset=gbk", None), ("", "gzip"), ("application/json", "deflate"), ("json", None)],
)  # fmt: skip
def test_content_types_that_are_not(kind: str, encoding: str | None) -> None:
    with pytest.raises(ServeError, match="TL-SERVE-CONTENT-TYPE"):
        check_headers(kind, encoding)


def test_a_name_of_a_field_in_an_error_is_short() -> None:
    with pytest.raises(ServeError) as caught:
        parse(json.dumps({"model": "m", "input": "x", "y" * 100_000: 1}).encode(), ClassifyRequest)
    assert len(caught.value.facts["param"]) == 200


TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
FIELDS = [
    *ChatRequest.model_fields,
    *ChatRequest.neutral,
    *CompletionRequest.model_fields,
    "suffix",
    "best_of",
    "input",
    "x",
]


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.sampled_from(FIELDS), TREES, max_size=4),
    st.sampled_from([ChatRequest, CompletionRequest, EmbeddingRequest, ClassifyRequest]),
    st.booleans(),
)
def test_any_field_with_any_content_is_taken_or_refused_with_a_code(
    more: dict[str, Any], kind: Any, valid: bool
) -> None:
    """Whatever stands in a field: it becomes a query, or an error that names a field which is there, or is missing."""
    base: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x"}
    body = {key: base[key] for key in base if key in kind.model_fields} if valid else {}
    body |= more
    try:
        asked = parse(json.dumps(body).encode(), kind)
    except ServeError as error:
        shown = error_body(error)["error"]
        assert shown["code"] in {"TL-SERVE-REQUEST", "TL-SERVE-UNSUPPORTED"}
        assert shown["param"]
        assert str(shown["param"]).split(".")[0] in {*body, *kind.model_fields}
        json.dumps(shown, ensure_ascii=False).encode("utf-8")
        return
    assert asked.queries() if hasattr(asked, "queries") else asked.query()


def test_a_flood_of_faults_is_one_error() -> None:
    """A long list of wrong entries is not answered by as many words, nor looked at to its end."""
    entries: list[Any] = [1] + ["x"] * 500_000
    for kind, field in ((CompletionRequest, "prompt"), (EmbeddingRequest, "input")):
        with pytest.raises(ServeError) as caught:
            parse(json.dumps({"model": "m", field: entries}).encode(), kind)
        assert caught.value.facts["param"] == f"{field}.1"


def test_a_body_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "BODY_SECONDS", 0.3)
    with serving(ScriptedEngine()) as server:
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
            slow.sendall(head.encode())
            assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")
