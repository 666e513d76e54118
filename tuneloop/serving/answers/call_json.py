"""The JSON of a tool call. Arguments are handed on as the model wrote them: no number is read and written anew."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

MOST_NAME = 128
"""Longest name of a function, in characters."""


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _number(digits: str) -> int:
    """Of a number only that it is one: it may be longer than any that Python reads."""
    return 0


_DECODER = json.JSONDecoder(parse_int=_number, parse_float=_number, parse_constant=_refuse)
_WHITE = re.compile(r"[ \t\r\n]*")


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """The members of a JSON object or list, which is valid: (key, JSON text); "" is the key of those of a list."""
    at = _WHITE.match(text, 1).end()  # type: ignore[union-attr]
    while text[at] not in "]}":
        key = ""
        if text[0] == "{":
            key, at = _DECODER.raw_decode(text, at)
            at = _WHITE.match(text, text.index(":", at) + 1).end()  # type: ignore[union-attr]
        end = _DECODER.raw_decode(text, at)[1]
        yield key, text[at:end]
        at = _WHITE.match(text, end).end()  # type: ignore[union-attr]
        if text[at] == ",":
            at = _WHITE.match(text, at + 1).end()  # type: ignore[union-attr]


def _decoded(text: str) -> Any:
    """What JSON text says; None where it is none."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def calls_in(text: str) -> list[tuple[str, str]]:
    """The calls of a JSON object, or of a list of them: (name, arguments as JSON text); [] where it is anything else.

    >>> calls_in('{"name": "f", "parameters": {"x": 1.50}}'), calls_in('[{"name": "f"}]'), calls_in('{"name": "f"')
    ([('f', '{"x": 1.50}')], [], [])
    """
    if not isinstance(_decoded(text), dict | list):
        return []
    trees = [inner for _, inner in _parts(text)] if text[0] == "[" else [text]
    calls = [call for tree in trees for call in _one_call(tree)]
    return calls if len(calls) == len(trees) else []


def _one_call(text: str) -> list[tuple[str, str]]:
    """An object with a name and arguments (Llama calls them parameters), by itself or as `function`."""
    if text[0] != "{":
        return []
    fields = dict(_parts(text))
    if fields.get("function", "")[:1] == "{":
        fields = dict(_parts(fields["function"]))
    name = _decoded(fields.get("name") or fields.get("function") or "")
    return named_call(name, fields.get("arguments") or fields.get("parameters") or "") if isinstance(name, str) else []


def named_call(name: str, arguments: str) -> list[tuple[str, str]]:
    """A call of a name with arguments, which are an object, or a text that holds one, or null; [] where they are not.

    >>> named_call("f", '"{}"'), named_call("f", "null"), named_call("f", "[1]"), named_call("", "{}")
    ([('f', '{}')], [('f', '{}')], [], [])
    """
    tree = _decoded(arguments)
    if isinstance(tree, str):
        arguments, tree = tree.strip(), _decoded(tree)
    elif arguments == "null":
        arguments, tree = "{}", {}
    if not isinstance(tree, dict) or not 0 < len(name) <= MOST_NAME:
        return []
    try:
        (name + arguments).encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which no answer could carry
        return []
    return [(name, arguments)]
