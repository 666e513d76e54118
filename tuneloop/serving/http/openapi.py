"""The description of the API for /openapi.json: each body as it is validated, each answer as it is written.

Bodies are read by hand, after the key; so nothing of this comes from the framework. One table says what each route
takes and gives, and the models that validate and the types that are written make the schemas.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from tuneloop.serving.http import record_shapes, shapes
from tuneloop.serving.http.chat_request import ChatRequest
from tuneloop.serving.http.text_requests import ClassifyRequest, CompletionRequest, EmbeddingRequest

REFERENCE = "#/components/schemas/{model}"
JSON, EVENTS, TEXT = "application/json", "text/event-stream", "text/plain"
FORM, LINES = "multipart/form-data", "application/jsonl"
Method = Literal["get", "post", "delete"]


@dataclass(frozen=True, slots=True)
class Operation:
    """A route: what it takes and what it gives."""

    summary: str
    answer: Any = None
    """The type of a 200; None for text."""
    body: type[BaseModel] | None = None
    event: Any = None
    """The type of each event where an answer may be streamed."""
    refusals: tuple[int, ...] = ()
    """Statuses of errors beside those of the key, the queue and the server."""
    is_open: bool = False
    """Whether it needs no key."""
    query: tuple[str, ...] = ()
    """Names of `QUERY` that its address takes."""
    upload: bool = False
    """Whether it takes a form with a file."""
    gives: str = TEXT
    """The content type of an answer that is no JSON."""


_BODY = (400, 404, 413, 415)
OPERATIONS: dict[tuple[Method, str], Operation] = {
    ("post", "/v1/chat/completions"): Operation(
        "Answers to a chat.", shapes.ChatCompletion, ChatRequest, shapes.ChatCompletionChunk, _BODY,
    ),
    ("post", "/v1/completions"): Operation(
        "Continuations of texts.", shapes.TextCompletion, CompletionRequest, shapes.TextCompletion, _BODY,
    ),
    ("post", "/v1/embeddings"): Operation(
        "Vectors of texts, by an encoder.", shapes.EmbeddingList, EmbeddingRequest, None, _BODY,
    ),
    ("post", "/v1/classify"): Operation(
        "The label of a text, by a classifier.", shapes.Classification, ClassifyRequest, None, _BODY,
    ),
    ("get", "/v1/models"): Operation("The models that may be asked for.", shapes.ModelList),
    ("get", "/v1/models/{name}"): Operation("One of these models.", shapes.ModelCard, refusals=(404,)),
    ("post", "/v1/feedback"): Operation(
        "Feedback on an answer.", record_shapes.FeedbackReply, record_shapes.FeedbackRequest, None, _BODY,
    ),
    ("post", "/v1/files"): Operation(
        "A file of requests for a batch.", record_shapes.FileObject, refusals=_BODY, upload=True,
    ),
    ("get", "/v1/files"): Operation(
        "The files, the newest first.", record_shapes.FileList, refusals=(400, 404),
        query=("purpose", "after", "limit"),
    ),
    ("get", "/v1/files/{file_id}"): Operation("One file.", record_shapes.FileObject, refusals=(404,)),
    ("get", "/v1/files/{file_id}/content"): Operation("Its lines.", refusals=(404,), gives=LINES),
    ("delete", "/v1/files/{file_id}"): Operation("Remove a file.", record_shapes.FileDeleted, refusals=(404,)),
    ("post", "/v1/batches"): Operation(
        "Answer the requests of a file.", record_shapes.BatchObject, record_shapes.BatchRequest, None, _BODY,
    ),
    ("get", "/v1/batches"): Operation(
        "The batches, the newest first.", record_shapes.BatchList, refusals=(400, 404), query=("after", "limit"),
    ),
    ("get", "/v1/batches/{batch_id}"): Operation("One batch.", record_shapes.BatchObject, refusals=(404,)),
    ("post", "/v1/batches/{batch_id}/cancel"): Operation(
        "End a batch early.", record_shapes.BatchObject, refusals=(400, 404),
    ),
    ("get", "/healthz"): Operation("Whether the server is alive.", shapes.Health, is_open=True),
    ("get", "/health"): Operation("Whether the server is alive.", shapes.Health, is_open=True),
    ("get", "/ready"): Operation("Whether a request would be answered now.", shapes.Health, is_open=True),
    ("get", "/metrics"): Operation("Figures in Prometheus' text format."),
    ("get", "/openapi.json"): Operation("This description.", dict[str, Any]),
    ("get", "/"): Operation("The chat page.", is_open=True, gives="text/html"),
    ("get", "/page/chat.css"): Operation("Its style.", is_open=True, gives="text/css"),
    ("get", "/page/chat.js"): Operation("Its script.", is_open=True, gives="text/javascript"),
}  # fmt: skip
QUERY: dict[str, dict[str, Any]] = {
    "after": {"type": "string", "description": "The last entry of the page before."},
    "limit": {"type": "integer", "minimum": 1, "maximum": 100},
    "purpose": {"type": "string"},
}
UPLOAD: dict[str, Any] = {
    "type": "object",
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"enum": ["batch"]}},
    "required": ["file", "purpose"],
}
WORDS: dict[int, str] = {
    400: "The request is not valid, or cannot be answered by this model.",
    401: "The key is missing, wrong, or has ended.",
    403: "The key lacks the scope.",
    404: "There is no such model, file or batch.",
    413: "The body is too large.",
    415: "The body is not sent as JSON, or a file not as a form.",
    429: "Too many requests; Retry-After says when to come back.",
    500: "The answer failed inside the server.",
    503: "The server is full, loading or shutting down; Retry-After says when to come back.",
}


@cache
def document() -> dict[str, Any]:
    """The description, as OpenAPI 3.1 has it.

    >>> sorted(document()), document()["openapi"]
    (['components', 'info', 'openapi', 'paths', 'security'], '3.1.0')
    """
    refer, schemas = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method] = _described(method, path, operation, refer)
    scheme = {"type": "http", "scheme": "bearer"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "tuneloop", "version": _version()},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": scheme}},
        "security": [{"key": []}],
    }


def _version() -> str:
    try:
        return version("tuneloop")
    except PackageNotFoundError:
        return "0"


def _schemas() -> tuple[dict[Any, Any], dict[str, Any]]:
    """A reference for each type of the table, and what the references mean."""
    operations = OPERATIONS.values()
    taken = {one.body for one in operations if one.body is not None}
    given = {kind for one in operations for kind in (one.answer, one.event) if kind is not None}
    inputs: list[tuple[Any, Literal["validation"], TypeAdapter[Any]]] = [
        (kind, "validation", TypeAdapter(kind)) for kind in [*taken, *given, shapes.ErrorReply]
    ]
    references, definitions = TypeAdapter.json_schemas(inputs, ref_template=REFERENCE)
    return {kind: schema for (kind, _), schema in references.items()}, definitions.get("$defs", {})


def _described(method: Method, path: str, operation: Operation, refer: dict[Any, Any]) -> dict[str, Any]:
    content = {operation.gives: {"schema": {"type": "string"}}}
    if operation.answer is not None:
        content = {JSON: {"schema": refer[operation.answer]}}
    if operation.event is not None:
        words = "With stream: true. Each event is `data: ` and one such object; the last one is `data: [DONE]`."
        content[EVENTS] = {"schema": {"description": words, **refer[operation.event]}}
    replies = {"200": {"description": operation.summary, "content": content}}
    for status in sorted({*operation.refusals, *((503,) if operation.is_open else (401, 403, 429, 500, 503))}):
        error = {JSON: {"schema": refer[shapes.ErrorReply]}}
        replies[str(status)] = {"description": WORDS[status], "content": error}
    out: dict[str, Any] = {
        "operationId": f"{method}_{re.sub('[^A-Za-z0-9]+', '_', path).strip('_') or 'page'}",
        "summary": operation.summary,
        "responses": replies,
    }
    if operation.body is not None:
        out["requestBody"] = {"required": True, "content": {JSON: {"schema": refer[operation.body]}}}
    if operation.upload:
        out["requestBody"] = {"required": True, "content": {FORM: {"schema": UPLOAD}}}
    names = re.findall(r"{(\w+)}", path)
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    parameters += [{"name": name, "in": "query", "schema": QUERY[name]} for name in operation.query]
    if parameters:
        out["parameters"] = parameters
    if operation.is_open:
        out["security"] = []
    return out
