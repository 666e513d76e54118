"""How an error is put in OpenAI's shape: its HTTP status, its type, and the field of the request that it is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.base.language import sentences

STATUS: dict[str, int] = {
    "TL-SERVE-REQUEST": 400,
    "TL-SERVE-UNSUPPORTED": 400,
    "TL-SERVE-TASK": 400,
    "TL-SERVE-NO-LABELS": 400,
    "TL-SERVE-NO-ANSWER": 400,
    "TL-SERVE-CONTEXT": 400,
    "TL-SERVE-TOKEN": 400,
    "TL-SERVE-ROOM": 400,
    "TL-SERVE-SCHEMA": 400,
    "TL-SERVE-SCHEMA-EXTRA": 400,
    "TL-SERVE-ADAPTER": 400,
    "TL-DATA-TEMPLATE": 400,
    "TL-SERVE-MODEL": 404,
    "TL-SERVE-ROUTE": 404,
    "TL-SERVE-METHOD": 405,
    "TL-SERVE-BODY": 413,
    "TL-SERVE-CONTENT-TYPE": 415,
    "TL-SERVE-CLOSING": 503,
    "TL-SERVE-LOADING": 503,
    "TL-SERVE-FAILED": 500,
}
"""Code -> HTTP status. Steps of admission and engines name theirs where they refuse; any other code is a fault of the
server."""
Kind = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "overloaded_error",
    "server_error",
]
TYPES: dict[int, Kind] = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 413: "invalid_request_error", 415: "invalid_request_error",
    422: "invalid_request_error", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip
"""HTTP status -> OpenAI's type of error; server_error for any other."""
NEVER = frozenset({"TL-SERVE-LIMIT-SIZE"})
"""Errors whose status asks to come back although no wait helps: OpenAI's clients read x-should-retry first."""
Places = Mapping[str, str]
"""How an engine's errors find their field, since it knows no HTTP: code of an error -> the field that it is about where
it names none, and name of a field of the query -> that of the request."""


def status_of(error: TuneloopError) -> int:
    """The HTTP status of an error."""
    named = error.facts.get("status") if isinstance(error, ServeError) else None
    return int(named or STATUS.get(error.code, 500))


def headers_of(error: TuneloopError) -> dict[str, str]:
    """The headers that go with an error: when to come back, and how to say who one is."""
    status = status_of(error)
    if error.code in NEVER:
        return {"x-should-retry": "false"}
    headers = {"Retry-After": str(error.facts.get("seconds", 1))} if status in {429, 503} else {}
    return headers | ({"WWW-Authenticate": "Bearer"} if status == 401 else {})


def error_body(error: TuneloopError, places: Places | None = None) -> dict[str, Any]:
    """{"error": {"message", "type", "param", "code"}}, the message with its remedy in the chosen language.

    >>> body = error_body(ServeError("TL-SERVE-CONTEXT", tokens=9, context=4), {"TL-SERVE-CONTEXT": "messages"})
    >>> body["error"]["param"], body["error"]["type"]
    ('messages', 'invalid_request_error')
    >>> error_body(ServeError("TL-SERVE-TOKEN", param="prompt"), {"prompt": "input"})["error"]["param"]
    'input'
    """
    kind = TYPES.get(status_of(error), "server_error")
    message = sentences(error.what, error.do)
    places = places or {}
    param = error.facts.get("param") or places.get(error.code)
    param = places.get(str(param), param)
    return {"error": {"message": message, "type": kind, "param": param, "code": error.code}}
