"""Requests that schemathesis makes from /openapi.json, valid and not, sent to a real server with a tiny model."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.scripted import Served, serving
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.access.scopes import ASKING
from tuneloop.serving.http.openapi import document
from tuneloop.serving.worker.torch_engine import TorchEngine

schemathesis = pytest.importorskip("schemathesis", reason="pip install -e '.[dev]'")
hypothesis = pytest.importorskip("hypothesis")

TEXTS = ("/v1/chat/completions", "/v1/completions")
REQUESTS: dict[tuple[str, str], int] = {
    ("POST", "/v1/chat/completions"): 200, ("POST", "/v1/completions"): 420, ("POST", "/v1/embeddings"): 45,
    ("POST", "/v1/classify"): 40, ("POST", "/v1/feedback"): 80, ("GET", "/v1/files"): 5, ("GET", "/v1/files/{file_id}"): 10,
    ("GET", "/v1/files/{file_id}/content"): 10, ("DELETE", "/v1/files/{file_id}"): 10, ("POST", "/v1/batches"): 20,
    ("GET", "/v1/batches"): 5, ("GET", "/v1/batches/{batch_id}"): 10, ("POST", "/v1/batches/{batch_id}/cancel"): 10,
    ("GET", "/v1/models"): 20, ("GET", "/v1/models/{name}"): 35, ("GET", "/healthz"): 10,
    ("GET", "/health"): 10, ("GET", "/ready"): 10, ("GET", "/metrics"): 20, ("GET", "/openapi.json"): 10, ("GET", "/"): 10,
    ("GET", "/page/chat.css"): 5, ("GET", "/page/chat.js"): 5,
}  # fmt: skip
"""How many are sent in `make test`, a thousand in all; the slow test sends ten times as many."""
LONGEST = 4
"""Tokens of an answer, so that thousands are answered."""


@pytest.fixture(scope="module")
def served(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    engine = TorchEngine(str(tiny_model), ServePart(max_new_tokens=LONGEST, slots=8))
    with serving(engine, queue=64, workspace=tmp_path_factory.mktemp("workspace")) as one:
        yield one


@pytest.fixture(scope="module")
def name(served: Served) -> str:
    return str(httpx.get(f"{served.url}/v1/models", timeout=120).json()["data"][0]["id"])


def test_a_thousand_are_planned_and_every_operation_is_there() -> None:
    assert sum(REQUESTS.values()) == 1000
    described = {(method.upper(), path) for path, methods in document()["paths"].items() for method in methods}
    assert set(REQUESTS) <= described


@pytest.mark.parametrize(("method", "path"), REQUESTS, ids=lambda one: one)
def test_generated(method: str, path: str, served: Served, name: str) -> None:
    _send(method, path, REQUESTS[method, path], served, name)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), REQUESTS, ids=lambda one: one)
def test_ten_times_as_many(method: str, path: str, served: Served, name: str) -> None:
    _send(method, path, 10 * REQUESTS[method, path], served, name)


def _send(method: str, path: str, count: int, served: Served, name: str) -> None:
    """Two of three are generated to be valid, the third not to be; a GET takes nothing that could be wrong."""
    modes = schemathesis.GenerationMode
    operation = schemathesis.openapi.from_dict(document())[path][method]
    wrong = count // 3 if method == "POST" and "{" not in path else 0
    statuses = Counter[int]()
    # A connection a request: a server closes one that was quiet for 5 s, and to make a case may take longer.
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=served.url, timeout=120, limits=limits) as client:
        for mode, most in ((modes.POSITIVE, count - wrong), (modes.NEGATIVE, wrong)):
            cases = operation.as_strategy(generation_mode=mode)
            _each(cases, most, lambda case: statuses.update([_asked(client, method, path, case, name)]))
        for _ in range(count - sum(statuses.values())):  # where there are few different ones, they are sent again
            statuses[client.request(method, re.sub(r"{\w+}", name, path)).status_code] += 1
    print(method, path, dict(statuses))
    assert sum(statuses.values()) == count, statuses
    assert all(status < 500 or status == 503 for status in statuses), statuses
    if path in TEXTS or path == "/v1/feedback":
        assert statuses[200] >= 0.3 * count, statuses
    elif method == "GET" and "{" not in path and path not in ("/v1/files", "/v1/batches"):
        assert set(statuses) == {200}


def _each(cases: Any, most: int, work: Callable[[Any], None]) -> None:
    """`work` on so many generated cases, the same ones in each run."""
    if not most:
        return

    @hypothesis.seed(7)
    @hypothesis.settings(
        max_examples=most, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )  # fmt: skip
    @hypothesis.given(case=cases)
    def one(case: Any) -> None:
        work(case)

    one()


def _asked(client: httpx.Client, method: str, path: str, case: Any, name: str) -> int:
    """The status of a case's answer, which is held to the description."""
    body = _served_here(case.body, name) if method == "POST" and "{" not in path else None
    for key, text in (case.path_parameters or {}).items():
        path = path.replace(f"{{{key}}}", httpx.URL("http://x").copy_with(path=f"/{text}").raw_path.decode()[1:] or "x")
    content = None if body is None else json.dumps(body, default=str).encode("utf-8", "surrogatepass")
    headers = {} if content is None else {"Content-Type": "application/json"}
    began = time.monotonic()
    reply = client.request(method, path, content=content, headers=headers, params=case.query or None)
    assert time.monotonic() - began < 100
    told = f"{method} {path} {str(content)[:2000]}\n{reply.status_code} {reply.text[:1000]}"
    assert reply.status_code < 500 or reply.status_code == 503, told
    if reply.status_code >= 400:
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}, told
        assert error["code"].startswith("TL-"), told
        assert "Traceback" not in reply.text, told
    elif isinstance(body, dict) and body.get("stream"):
        assert reply.text.endswith("data: [DONE]\n\n") or '"error"' in reply.text, told
    elif path in ASKING:
        assert reply.json()["model"] == body["model"], told
    return int(reply.status_code)


def _as_written(field: Any) -> Any:
    """A number without a fraction as JSON writes it: 3.0 is a whole number to the schema."""
    if isinstance(field, dict):
        return {key: _as_written(inner) for key, inner in field.items()}
    if isinstance(field, list):
        return [_as_written(inner) for inner in field]
    return int(field) if isinstance(field, float) and field.is_integer() else field


def _in_vocabulary(field: Any) -> Any:
    """Token ids as ids that every model has."""
    if isinstance(field, list):
        return [_in_vocabulary(one) for one in field]
    return field % 100 if type(field) is int and field >= 0 else field


def _served_here(body: Any, name: str) -> Any:
    """The body with a model that is there and tokens of its vocabulary, and short answers; what has another form stays
    as it was made."""
    if not isinstance(body, dict):
        return body
    body = _as_written(body)
    if isinstance(body.get("model"), str):
        body["model"] = name
    for key in ("prompt", "input"):
        if isinstance(body.get(key), list):
            body[key] = _in_vocabulary(body[key])
    for key, most in (("max_tokens", LONGEST), ("max_completion_tokens", LONGEST), ("n", 2)):
        if isinstance(body.get(key), int) and body[key] > most:
            body[key] = most
    return body
