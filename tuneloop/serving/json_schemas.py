"""JSON schemas that clients send: bounded in size and depth, and looked at before anything is built from them."""

from __future__ import annotations

import json
from typing import Any

from tuneloop.base.language import t

MOST_BYTES = 64 << 10
"""Longest schema, as JSON."""
MOST_DEPTH = 32
"""Deepest nesting of a schema."""


def checked(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema itself. Raises ValueError, with words for a person, for one that is none or too large.

    >>> checked({"type": "object"})
    {'type': 'object'}
    """
    size = len(json.dumps(schema, ensure_ascii=False).encode("utf-8"))
    if size > MOST_BYTES:
        raise ValueError(t("the schema is too large: {got} bytes, at most {most}", got=size, most=MOST_BYTES))
    if _depth(schema) > MOST_DEPTH:
        raise ValueError(t("it is nested deeper than {most} levels", most=MOST_DEPTH))
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        place = ".".join(map(str, error.absolute_path))
        raise ValueError(t("it is no JSON schema: {error}", error=f"{place}: {error.message}"[:200])) from error
    return schema


def _depth(tree: Any) -> int:
    """Levels of a JSON tree.

    >>> _depth({"a": [1]}), _depth(1)
    (2, 0)
    """
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return 1 + max(map(_depth, inner), default=0) if isinstance(tree, dict | list) else 0
