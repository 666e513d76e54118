"""A line of a batch: the request in it, what is wrong with it, and the line of its answer."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneloop.base.language import t

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify")
"""Routes that a batch may ask."""
MOST_LINES = 50_000
"""Lines of a batch, as OpenAI's API has it."""
MOST_ID = 512
"""Longest custom_id, in characters."""


@dataclass(frozen=True, slots=True)
class LineRequest:
    """What a line asks: `body` is sent to the batch's endpoint."""

    custom_id: str
    body: Mapping[str, Any]


class LineFault(ValueError):
    """A line that is no request: `code` as OpenAI's API has it, `param` the field."""

    def __init__(self, code: str, words: str, param: str | None = None) -> None:
        super().__init__(words)
        self.code, self.param = code, param


def read_line(line: str, endpoint: str) -> LineRequest:
    """Raises LineFault. Its words hold nothing of the line.

    >>> read_line('{"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {}}', "/v1/completions")
    LineRequest(custom_id='1', body={})
    """
    try:
        tree = json.loads(line.removeprefix("\ufeff"))  # which editors put before the first line
    except (ValueError, RecursionError):
        raise LineFault("invalid_json_line", t("the line is not JSON")) from None
    if not isinstance(tree, dict):
        raise LineFault("invalid_json_line", t("the line is no JSON object"))
    name = tree.get("custom_id")
    if not isinstance(name, str) or not 0 < len(name) <= MOST_ID:
        raise LineFault("missing_required_parameter", t("a text of 1 to {most} characters", most=MOST_ID), "custom_id")
    if tree.get("method", "POST") != "POST":
        raise LineFault("invalid_method", t("POST is wanted"), "method")
    if tree.get("url") != endpoint:
        raise LineFault(
            "mismatched_endpoint", t("the batch's endpoint is wanted: {endpoint}", endpoint=endpoint), "url"
        )
    body = tree.get("body")
    if not isinstance(body, dict):
        raise LineFault("missing_required_parameter", t("a JSON object is wanted"), "body")
    if body.get("stream"):
        raise LineFault("invalid_request", t("a batch streams nothing"), "body.stream")
    return LineRequest(name, body)


def answer_line(custom_id: str, status: int, body: Any) -> str:
    """The line of an answer, or of an error that the server gave."""
    response = {"status_code": status, "request_id": f"req_{secrets.token_hex(12)}", "body": body}
    return _line(custom_id, response, None)


def error_line(custom_id: str, code: str, words: str) -> str:
    """The line of a request that was not sent."""
    return _line(custom_id, None, {"code": code, "message": words})


def _line(custom_id: str, response: Any, error: Any) -> str:
    row = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": custom_id, "response": response, "error": error}
    # Half a surrogate pair, which is no UTF-8, is written as JSON's escape of it.
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace").decode() + "\n"
