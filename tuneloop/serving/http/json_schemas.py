"""JSON schemas that clients send: bounded in size and depth, and looked at before anything is built from them."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from tuneloop.base.language import t

MOST_BYTES = 64 << 10
"""Longest schema, as JSON."""
MOST_NODES = 2000
"""Most objects and lists in a schema: each costs the look at it some time."""
MOST_DEPTH = 32
"""Deepest nesting of a schema."""


def checked(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema itself. Raises ValueError, with words for a person, for one that is none or too large.

    >>> checked({"type": "object"})
    {'type': 'object'}
    """
    depth, nodes = extent(schema)
    text = json.dumps(schema, ensure_ascii=False)
    size = len(text.encode("utf-8"))
    if size > MOST_BYTES:
        raise ValueError(t("the schema is too large: {got} bytes, at most {most}", got=size, most=MOST_BYTES))
    if nodes > MOST_NODES:
        raise ValueError(t("the schema is too large: {got} parts, at most {most}", got=nodes, most=MOST_NODES))
    if depth > MOST_DEPTH:
        raise ValueError(t("it is nested deeper than {most} levels", most=MOST_DEPTH))
    if fault := _fault(text):
        raise ValueError(t("it is no JSON schema: {error}", error=fault))
    return schema


@lru_cache(maxsize=512)
def _fault(text: str) -> str:
    """What makes JSON no JSON schema, "" where it is one. Programs send the same tools with each request."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    schema = json.loads(text)
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        return f"{'.'.join(map(str, error.absolute_path))}: {error.message}"[:200]
    return ""


def extent(tree: Any) -> tuple[int, int]:
    """Levels of a JSON tree, and the objects and lists in it.

    >>> extent({"a": [1], "b": {}}), extent(1)
    ((2, 3), (0, 0))
    """
    if not isinstance(tree, dict | list):
        return 0, 0
    inner = [extent(one) for one in (tree.values() if isinstance(tree, dict) else tree)]
    return 1 + max((depth for depth, _ in inner), default=0), 1 + sum(nodes for _, nodes in inner)
