"""Reads the body of a request: JSON that means one thing only, and fits the model that describes it.

It is read here, not by the framework: after the key, and never more than `MOST_BYTES`. What other readers let through
in silence is refused: a key that comes twice, NaN, half of a surrogate pair, nesting without end.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from tuneloop.base.errors import ServeError
from tuneloop.base.language import t
from tuneloop.serving.http.body_faults import fault_words

if TYPE_CHECKING:
    from starlette.requests import Request

Body = TypeVar("Body", bound=BaseModel)
MOST_BYTES = 8 << 20
"""Longest request body; a context of a million tokens fits."""
MOST_DEPTH = 64
"""Deepest nesting of a body's JSON."""
BODY_SECONDS = 120.0
"""How long a body may take to come: one that never ends would hold its connection, and a drain, for ever."""
LONG = 64 << 10
"""Bytes of a body that is read aside."""
_SCHEMAS = (b"tools", b"response_format", b"\\u")
"""What a body has that brings schemas, under whatever spelling."""
MOST_PARAM = 200
"""Longest name of a field in an error, in characters."""


async def read_body(request: Request, kind: type[Body]) -> Body:
    """The request's body as a `kind`.

    Raises TL-SERVE-BODY, TL-SERVE-CONTENT-TYPE, TL-SERVE-REQUEST with the field's name, and what the model raises.
    """
    check_headers(request.headers.get("content-type"), request.headers.get("content-encoding"))
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MOST_BYTES:
        raise ServeError("TL-SERVE-BODY", most=MOST_BYTES)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BYTES:
                    raise ServeError("TL-SERVE-BODY", most=MOST_BYTES)
    except TimeoutError:
        words = t("it did not come in {seconds} seconds", seconds=round(BODY_SECONDS))
        raise ServeError("TL-SERVE-REQUEST", status=408, where="body", param=None, error=words) from None
    # What may take long is read in another thread: nobody's stream waits for it.
    if len(body) > LONG or any(word in body for word in _SCHEMAS):
        return await asyncio.to_thread(parse, bytes(body), kind)
    return parse(bytes(body), kind)


def check_headers(content_type: str | None, encoding: str | None) -> None:
    """Whether a body can be read that is sent with these headers; one without any can.

    Raises TL-SERVE-CONTENT-TYPE.

    >>> check_headers("application/json; charset=UTF-8", None)
    """
    kind, _, parameters = (content_type or "application/json").partition(";")
    kind, charset = kind.strip().lower(), parameters.lower().partition("charset=")[2].strip(' "')
    good = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    if not good or charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise ServeError("TL-SERVE-CONTENT-TYPE", got=str(content_type)[:MOST_PARAM])
    if encoding and encoding.strip().lower() != "identity":
        raise ServeError("TL-SERVE-CONTENT-TYPE", got=f"Content-Encoding: {encoding}"[:MOST_PARAM])


def parse(body: bytes, kind: type[Body]) -> Body:
    """A body's bytes as a `kind`. Raises TL-SERVE-REQUEST with the field's name."""
    tree = parse_json(body)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        where, fault = _first(error, tree)
        raise _refusal(fault_words(fault), where) from error


def parse_json(body: bytes) -> Any:
    """Strict JSON. Raises TL-SERVE-REQUEST.

    >>> parse_json(b'{"a": [1, null]}')
    {'a': [1, None]}
    """
    try:
        tree = _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _refusal(t("it is not UTF-8")) from error
    except RecursionError as error:
        raise _refusal(t("it is nested deeper than {most} levels", most=MOST_DEPTH)) from error
    except ValueError as error:  # JSONDecodeError is one; so is a number of more than 4,300 digits
        raise _refusal(t("it is not JSON ({error})", error=str(error)[:MOST_PARAM])) from error
    _check(tree)
    return tree


def _refusal(words: str, where: Sequence[str | int] = ()) -> ServeError:
    param = ".".join(str(part) for part in where)[:MOST_PARAM] or None
    return ServeError("TL-SERVE-REQUEST", where=param or "body", param=param, error=words)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _refusal(t("it is given twice"), [_safe(twice)])
    return tree


# NaN and what is too large for a float are read here, so that `_check` can say where they stand.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=float)


def _safe(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _check(tree: Any) -> None:
    """Refuse what is nested too deep, and numbers and characters that no answer could carry."""
    level: list[tuple[Any, tuple[str | int, ...]]] = [(tree, ())]
    for depth in range(1, MOST_DEPTH + 1):
        below = []
        for node, path in level:
            for key, inner in _members(node):
                if fault := _fault(key) or _fault(inner):
                    raise _refusal(fault, (*path, _safe(key) if isinstance(key, str) else key))
                if isinstance(inner, dict | list):
                    below.append((inner, (*path, key)))
        if depth == MOST_DEPTH and below:
            raise _refusal(t("it is nested deeper than {most} levels", most=MOST_DEPTH), below[0][1][:1])
        level = below


def _members(node: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, list):
        yield from enumerate(node)


def _fault(leaf: Any) -> str:
    """What is wrong with a number or a text that JSON let through; "" where nothing is."""
    if isinstance(leaf, float) and not math.isfinite(leaf):
        return t("a finite number")
    try:
        if isinstance(leaf, str):
            leaf.encode("utf-8")
    except UnicodeEncodeError:
        return t("half of a surrogate pair is no character")
    return ""


def _first(error: ValidationError, tree: Any) -> tuple[list[str | int], dict[str, Any]]:
    """The first fault with its place in the body. Where a field may be one of several things, the fault of that which
    it nearly was: the deepest."""
    faults = [(_place(fault, tree), dict(fault)) for fault in error.errors(include_url=False, include_input=False)]
    first = faults[0][0]
    return max((one for one in faults if one[0][: len(first)] == first), key=lambda one: len(one[0]))


def _place(fault: Any, tree: Any) -> list[str | int]:
    """Where in the body a fault is, without the names that pydantic gives to the branches of a union.

    >>> _place({"loc": ("a", "list[int]", 0), "type": "int_type"}, {"a": ["x"]})
    ['a', 0]
    >>> _place({"loc": ("a", "Model", "b"), "type": "missing"}, {"a": {}})
    ['a', 'b']
    """
    out: list[str | int] = []
    for k, step in enumerate(fault["loc"]):
        last = k == len(fault["loc"]) - 1
        inner = dict(_members(tree))
        if step in inner:
            tree = inner[step]
        elif not (last and fault["type"] == "missing"):
            continue
        out.append(step)
    return out
